"""Winograd convolution of 3x3 kernels, F(4x4, 3x3): a quarter of the products.

An image is cut into tiles of 6x6 pixels that overlap by two, for 4x4 that are made. Tile and kernel are transformed so
that multiplying them number by number gives the convolved pixels, transformed: for all channels, 36 products of
matrices, with a quarter of the multiplications (Lavin and Gray 1509.09308). Nothing is kept: a kernel is transformed
at every call. Exact but for rounding: 5e-6 of the direct result.

In C (`c/winograd.c`) all is done in one pass, and the image may be doubled on the way, or be bfloat16, which is float32
in between: no less exact than the direct way. Where no extension was compiled the transforms too are products, with the
Kronecker squares of their matrices, which wins at large images of float32 alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reverie.runtime import extension, kernels

MADE, SEEN = 4, 6  # pixels of a side of a tile


def wins(channels: int, made: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether it is the quicker way between so many channels, to images of `height` x `width` pixels.

    How many images there are does not matter, lest one came out otherwise in another batch.
    """
    if hasattr(extension.library(), KERNELS.get(dtype, "")):
        return min(channels, made) >= NARROW and height * width >= (FEW if dtype == torch.float32 else FEW_HALVES)
    if dtype != torch.float32:
        return False
    large = -(-height // MADE) * -(-width // MADE) >= MANY
    return large and min(channels, made) >= WIDE and SEEN**2 * channels * made <= LARGEST


KERNELS = {torch.float32: "winograd", torch.bfloat16: "winograd_bfloat16"}  # in C
# Measured (docs/measured/performance.md): channels and pixels from which it wins in C, and pixels in bfloat16,
NARROW, FEW, FEW_HALVES = 32, 16, 256
# and channels, tiles and numbers of a transformed kernel (128 MiB) between which it wins with torch's products.
WIDE, MANY, LARGEST = 128, 64, 2**25


@torch.no_grad()
def conv2d(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "out c 3 3"],
    bias: Float[Tensor, " out"] | None,
    padding: tuple[int, int] = (1, 1),
    add: Float[Tensor, "b out #h2 #w2"] | None = None,
    relu: bool = False,
    doubled: bool = False,
) -> Float[Tensor, "b out h2 w2"]:
    """Convolve with stride 1 and a padding of 0 or 1, plus `add`, which may be one pixel for all, or the ReLU of it.

    `doubled` convolves the image in which every pixel of x stands twice in each direction. x is in channels-last, and
    so is what is returned.
    """
    if extension.library() is None:
        return _by_products(x, weight, bias, padding, add, relu, doubled)
    images, channels, height, width = x.shape
    high, wide = ((side << doubled) + 2 * pad - 2 for side, pad in zip((height, width), padding, strict=True))
    size = (images, len(weight), high, wide)
    y = torch.empty(size, dtype=x.dtype, device="cpu", memory_format=torch.channels_last)
    kernels.take_huge_pages(y)
    one_pixel = add is not None and add.shape[2:] != y.shape[2:]
    if add is not None:
        add = add.expand(images, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    shape = (images, height, width, channels, len(weight), *padding, int(doubled), int(one_pixel), int(relu))
    plan, room = _plan(*shape, torch.get_num_threads())
    extension.call(KERNELS[x.dtype], plan, x, weight.contiguous(), bias, add, y, _ROOM.of(room))
    return y


FOUND = 8  # numbers that C finds for a shape; the last is how many of room it takes


@lru_cache(maxsize=1024)
def _plan(*shape: int) -> tuple[Tensor, int]:
    plan = torch.tensor([*shape, *[0] * FOUND], device="cpu")
    extension.call("winograd_plan", plan)
    return plan, int(plan[-1])


class _Room(threading.local):
    """Hold what a thread's convolutions write in between: memory that came anew at each call would cost page faults."""

    held = torch.empty(0, **extension.FLOATS)

    def of(self, count: int) -> Tensor:
        """Return room for so many numbers."""
        if extension.is_recorded():
            return torch.empty(count, **extension.FLOATS)
        if len(self.held) < count:
            self.held = torch.empty(count, **extension.FLOATS)
        return self.held


_ROOM = _Room()


def _square(rows: Sequence[Sequence[float]], divisor: float = 1) -> Float[Tensor, "a b"]:
    matrix = torch.tensor(rows, **extension.FLOATS) / divisor
    return torch.kron(matrix, matrix)


# Lavin and Gray, section 4.4.
INPUT = _square(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = _square([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], 24)
OUTPUT = _square([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
TILES = 256  # done at a time (measured: 64 to 512 differ by 10 %)
PART = 2**22  # numbers of a part of a transformed kernel: memory of 32 MiB or more comes from the system at every call


def _by_products(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "out c 3 3"],
    bias: Float[Tensor, " out"] | None,
    padding: tuple[int, int],
    add: Float[Tensor, "b out #h2 #w2"] | None,
    relu: bool,
    doubled: bool,
) -> Float[Tensor, "b out h2 w2"]:
    """Convolve by torch's products, a few rows of tiles at a time: what lies between two stays in the cache."""
    pixels = (F.interpolate(x, scale_factor=2) if doubled else x).permute(0, 2, 3, 1)
    above, left = padding
    height, width = pixels.shape[1] + 2 * above - 2, pixels.shape[2] + 2 * left - 2
    down, across = -(-height // MADE), -(-width // MADE)
    made = x.new_empty(len(x), down * MADE, across * MADE, len(weight))
    right, below = MADE * across + 2 - left - pixels.shape[2], MADE * down + 2 - above - pixels.shape[1]
    seen = F.pad(pixels, (0, 0, left, right, above, below))
    kernels = _transform_kernel(weight)
    rows, images = min(down, max(1, TILES // across)), max(1, TILES // (down * across))
    for first in range(0, len(x), images):
        some = slice(first, first + images)
        for top in range(0, down * MADE, rows * MADE):
            bottom = min(top + rows * MADE, down * MADE)
            _block(seen[some, top : bottom + 2], kernels, made[some, top:bottom])
    y = made[:, :height, :width].permute(0, 3, 1, 2)
    for added in (None if bias is None else bias[:, None, None], add):
        if added is not None:
            y += added
    return torch.relu_(y) if relu else y


def _transform_kernel(weight: Float[Tensor, "out c 3 3"]) -> list[Float[Tensor, "36 c _"]]:
    """Transform a kernel, in parts of some of the channels that are made."""
    parts = weight.detach().chunk(-(-(SEEN**2) * weight[..., 0, 0].numel() // PART))
    return [(KERNEL @ part.reshape(-1, 9).T).view(SEEN**2, len(part), -1).mT for part in parts]


def _block(
    seen: Float[Tensor, "n h2 w2 c"], kernels: Sequence[Float[Tensor, "36 c _"]], made: Float[Tensor, "n h w out"]
) -> None:
    """Convolve some rows of tiles of n images, with a pixel around them, and write what is made."""
    written = made.unflatten(2, (-1, MADE)).unflatten(1, (-1, MADE)).permute(2, 4, 0, 1, 3, 5)
    image, row, pixel, channel = seen.stride()
    shape = (SEEN, SEEN, *written.shape[2:5], seen.shape[3])
    cut = seen.as_strided(shape, (row, pixel, image, MADE * row, MADE * pixel, channel), seen.storage_offset())
    tiles = (INPUT @ cut.reshape(SEEN**2, -1)).view(SEEN**2, -1, seen.shape[3])
    parts = written.split([kernel.shape[2] for kernel in kernels], dim=-1)
    for part, kernel in zip(parts, kernels, strict=True):
        part.copy_((OUTPUT @ torch.bmm(tiles, kernel).flatten(1)).view(part.shape))
