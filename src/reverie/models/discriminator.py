"""Discriminators: PatchGAN for the autoencoder's adversarial loss, one logit a patch; heads on a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

KERNEL = 4


@dataclass(frozen=True)
class PatchGANConfig:
    """Describe a PatchGAN; the defaults are those of latent diffusion (a field of 70 pixels)."""

    in_channels: int = 3
    width: int = 64
    layers: int = 3


class PatchGAN(nn.Module):
    """Give every overlapping image patch one logit, high for real ones (Isola et al. 2017, section 3.2.2).

    The parameter names are those of taming-transformers' `NLayerDiscriminator` (`main.N.weight`).
    """

    def __init__(self, config: PatchGANConfig = PatchGANConfig()) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(config.in_channels, widths[0], KERNEL, stride=2, padding=1), _activation()]
        for i in range(1, config.layers + 1):
            stride = 2 if i < config.layers else 1
            # The normalisation's shift makes a bias here redundant.
            blocks += [
                nn.Conv2d(widths[i - 1], widths[i], KERNEL, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]),
                _activation(),
            ]
        blocks.append(nn.Conv2d(widths[-1], 1, KERNEL, stride=1, padding=1))
        self.main = nn.Sequential(*blocks)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 p q"]:
        """Return the patch logits of images in [-1, 1]; 256 pixels give 30 x 30 logits with three layers."""
        return self.main(images)


class FeatureDiscriminator(nn.Module):
    """Give each place of another network's features one logit, high for real ones: a small head a feature map.

    It starts by saying 0 of everything, so that what it judges is not misled before it has learned. Source: the heads
    on a frozen teacher of Sauer et al. 2403.12015, section 3; in place of theirs, the convolutions of a PatchGAN.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(inputs, width) for inputs in channels)

    def forward(self, features: Sequence[Float[Tensor, "b _c _h _w"]]) -> Float[Tensor, "b logits"]:
        """Return the logits of all heads, one behind another."""
        return torch.cat([head(x).flatten(1) for head, x in zip(self.heads, features, strict=True)], dim=1)


def _head(inputs: int, width: int) -> nn.Sequential:
    last = nn.Conv2d(width, 1, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(
        nn.GroupNorm(1, inputs),
        nn.Conv2d(inputs, width, 3, padding=1),
        _activation(),
        nn.Conv2d(width, width, 3, padding=1),
        _activation(),
        last,
    )


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2, inplace=True)


def _initialise(module: nn.Module) -> None:
    """Draw convolutions from N(0, 0.02) and normalisation gains from N(1, 0.02) (DCGAN, section 3)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
