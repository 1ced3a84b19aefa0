"""How is an image doubled and convolved with less than half of the work? On the small image, once for each corner.

Of the nine pixels under a 3x3 kernel on an image whose pixels are repeated, only four are different ones: two rows of
the kernel, and two of its columns, fall on the same pixel. Their weights are added up once. The four corners of a
doubled pixel see four such 2x2 kernels: 16 multiplications in place of 36. The result is the same but for rounding.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.layers import Upsample
from reverie.runtime import kernels
from reverie.runtime.kernels import Packed
from reverie.runtime.layers import LAST, PackedConv2d
from reverie.runtime.pages import let_go, trim
from reverie.runtime.weights import version

CORNERS = tuple(product((0, 1), repeat=2))
"""The corners of a doubled pixel: (0, 0) is above on the left."""
LARGE = 2**23  # numbers of an image whose memory comes from the system anew (32 MiB): then the small ones' goes back
SMALL = 129  # pixels of a batch below which four kernels gain too little for their memory
SHAPE = ((1, 1), (1, 1), (1, 1))  # stride, padding and dilation of their convolutions


class FastUpsample(Upsample):
    """Enlarge by two without ever making the image of repeated pixels; the convolution's own weight stays plain."""

    conv: PackedConv2d
    # Of which weight, as of when and for which size: packed by corner.
    corners: tuple[nn.Parameter, tuple[int, torch.Size], list[Packed]] | None = None

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
        height, width = x.shape[2:]
        plain = self.conv._forward_pre_hooks or self.conv._forward_hooks or self.conv.padding != (1, 1)
        if (
            len(x) * height * width < SMALL
            or plain
            or size not in (None, (2 * height, 2 * width))
            or not self.conv.computes(x)
        ):
            return super().forward(x, size)
        x = x.contiguous(memory_format=LAST)
        shape = (len(x), self.conv.out_channels, 2 * height, 2 * width)
        if math.prod(shape) >= LARGE:
            trim()
        enlarged = torch.empty(shape, dtype=x.dtype, memory_format=LAST)
        for (top, left), weight in zip(CORNERS, self.by_corner(x.shape), strict=True):
            # Padded on all sides, the image has a row and a column more than a corner sees.
            seen = kernels.conv2d(x, weight, self.conv.bias, *SHAPE)
            enlarged[:, :, top::2, left::2] = seen[:, :, top : top + height, left : left + width]
        return enlarged

    def by_corner(self, size: torch.Size) -> list[Packed]:
        """Return the four packed kernels, made anew where the weight is another or was written to, or the size is."""
        weight = self.conv.weight
        state = version(weight), size[2:]
        if self.corners is None or self.corners[0] is not weight or self.corners[1] != state:
            kept = [kernels.pack_conv2d(seen_from(weight, *corner), size, *SHAPE) for corner in CORNERS]
            self.corners = weight, state, kept
            let_go(weight)
        return self.corners[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "corners"}


def seen_from(weight: Float[Tensor, "out in 3 3"], top: int, left: int) -> Float[Tensor, "out in 2 2"]:
    """Add up the rows and columns of a kernel that fall on one pixel, seen from a corner of a doubled pixel."""
    return _pairs(_pairs(weight, 2, top), 3, left)


def _pairs(weight: Tensor, axis: int, last: int) -> Tensor:
    """Add the last two of three along an axis, or the first two."""
    first, middle, third = weight.detach().unbind(axis)
    return torch.stack([first + middle, third] if last else [first, middle + third], dim=axis)
