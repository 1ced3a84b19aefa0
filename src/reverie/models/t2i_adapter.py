"""T2I-Adapter: a small network whose features of a picture are added to those of a U-Net's way down.

Source: Mou et al. 2302.08453 and its code (TencentARC/T2I-Adapter). The parameters are named as in diffusers'
`T2IAdapter`, without its prefix. Features are computed once for all steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FACTOR_XL = 16  # pixels that SDXL's take for one at first; theirs halve once more, the others at each level


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Describe a T2I-Adapter: `factor` pixels of a side become one, and each level has `layers` residual blocks.

    A light one (`light`) computes at a quarter of each level's width.
    """

    in_channels: int = 3
    factor: int = 8
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    light: bool = False

    def halves(self, level: int) -> bool:
        """Tell whether a level begins by halving the image."""
        return level == 2 if self.factor == FACTOR_XL else level > 0


class AdapterLayer(nn.Module):
    """Add two convolutions with a ReLU between them to the input."""

    def __init__(self, width: int, last: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, last, padding=last // 2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.block2(F.relu(self.block1(x)))


class AdapterLevel(nn.Module):
    """Halve the image or not, bring it to a width, and apply residual blocks; a light one widens it after them."""

    def __init__(self, before: int, width: int, layers: int, *, halve: bool, light: bool) -> None:
        super().__init__()
        inner = width // 4 if light else width
        self.halve = halve
        self.in_conv = nn.Conv2d(before, inner, 1) if light or before != inner else None
        self.resnets = nn.Sequential(*(AdapterLayer(inner, 3 if light else 1) for _ in range(layers)))
        self.out_conv = nn.Conv2d(inner, width, 1) if light else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        if self.halve:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = self.resnets(x if self.in_conv is None else self.in_conv(x))
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(nn.Module):
    """Answer a picture with what is to be added to a U-Net's way down, a level each."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        seen = config.in_channels * config.factor**2
        self.conv_in = None if config.light else nn.Conv2d(seen, config.widths[0], 3, padding=1)
        befores = pairwise((seen if config.light else config.widths[0], *config.widths))
        self.body = nn.ModuleList(
            AdapterLevel(before, width, config.layers, halve=config.halves(level), light=config.light)
            for level, (before, width) in enumerate(befores)
        )

    def forward(self, picture: Float[Tensor, "b c hf wf"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Return the features of pictures in [0, 1], whose sides are multiples of `factor`."""
        x = F.pixel_unshuffle(picture, self.config.factor)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return features
