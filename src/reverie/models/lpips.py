"""LPIPS: the distance of two images by their normalised deep features (Zhang et al. 2018)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from reverie.errors import ReverieError

# richzhang/PerceptualSimilarity, lpips.py: ScalingLayer. It brings [-1, 1] to the statistics of ImageNet.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
# VGG16 (Simonyan and Zisserman 2014, table 1, column D); its features are taken before each pooling.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
WIDTHS = tuple(stage[-1] for stage in VGG16_STAGES)

Features = Callable[[Tensor], Sequence[Tensor]]


def normalised_differences(
    features: Features, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
) -> list[Tensor]:
    """Return, for every feature map, the squared differences after each place's channels are scaled to length 1."""
    return [(_unit(a) - _unit(b)).square() for a, b in zip(features(x), features(y), strict=True)]


def _unit(feature: Tensor) -> Tensor:
    # The small number stands under the root: the root's slope at 0 is infinite, and would make gradients NaN.
    return feature / feature.square().sum(1, keepdim=True).add(1e-20).sqrt()


class FeatureDistance(nn.Module):
    """Measure how different images look by the features of any network: LPIPS with all channel weights 1.

    `features` takes images to a list of "b c h w" maps. For where VGG's weights are missing.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Return one distance a pair: summed over maps and channels, averaged over places; 0 for equal features."""
        differences = normalised_differences(self.features, x, y)
        return torch.stack([difference.sum(1).mean((1, 2)) for difference in differences]).sum(0)


class VGG16(nn.Module):
    """Compute VGG16's five feature maps; the parameter names are those of torchvision's vgg16 (`features.N.weight`)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        channels = 3
        for i, stage in enumerate(VGG16_STAGES):
            if i:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of images normalised for ImageNet."""
        maps = []
        x = images
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


class Lin(nn.Module):
    """Weigh a feature map's channels; the parameter name is that of richzhang's lpips (`model.1.weight`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Place 0 is the reference's dropout, which has no parameters.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the weighted sum over channels."""
        return self.model(feature)


class LPIPS(nn.Module):
    """Measure how different images look, by VGG16 and weights learnt from human judgements (LPIPS 0.1).

    Its values mean something only with those weights, see `LPIPS.load`. All parameters are frozen.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = VGG16()
        self.lin0, self.lin1, self.lin2, self.lin3, self.lin4 = (Lin(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Return one distance a pair of images in [-1, 1]; 0 for equal images."""
        lins = (self.lin0, self.lin1, self.lin2, self.lin3, self.lin4)
        differences = normalised_differences(self._features, x, y)
        return torch.stack([lin(d).mean((1, 2, 3)) for lin, d in zip(lins, differences, strict=True)]).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        return self.net((images - self.shift) / self.scale)

    @classmethod
    def load(cls, vgg: str | Path, lins: str | Path) -> LPIPS:
        """Read VGG16 (torchvision's vgg16) and the channel weights (richzhang's weights/v0.1/vgg.pth).

        Files are safetensors, or pickles that hold tensors alone. Raises ReverieError where a file is missing, holds
        anything else or lacks a tensor.
        """
        weights, trunk = _read(Path(lins)), _read(Path(vgg))
        model = cls()
        for i in range(len(WIDTHS)):
            _load(model.get_submodule(f"lin{i}"), weights, lins, f"lin{i}.")
        _load(model.net, trunk, vgg)
        return model


def _load(module: nn.Module, tensors: dict[str, Tensor], path: str | Path, prefix: str = "") -> None:
    """Copy the module's tensors from a file's, and leave the others (torchvision's file has a classifier too)."""
    for name, target in module.state_dict().items():
        found = tensors.get(prefix + name)
        if found is None or found.shape != target.shape:
            got = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ReverieError(f"{prefix + name} {got} in {path}; it should have shape {tuple(target.shape)}")
        target.copy_(found)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ReverieError(f"no file {path}; give VGG16's weights and LPIPS's as .safetensors or .pth")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ReverieError(f"{path} holds more than tensors and is not loaded; convert it to safetensors") from None
