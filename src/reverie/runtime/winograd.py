"""Winograd convolution of 3x3 kernels, F(4x4, 3x3) and F(2x2, 3x3): a quarter or four ninths of the products.

An image is cut into tiles that overlap by two pixels: of 6x6 for 4x4 that are made, of 4x4 for 2x2. Tile and kernel are
transformed so that multiplying them number by number gives the convolved pixels, transformed: for all channels, 36 or
16 products of matrices, with a quarter or four ninths of the multiplications (Lavin and Gray 1509.09308). Here the
transforms too are products, with the Kronecker squares of their matrices, and a few rows of tiles are done at a time,
so that what lies between two products stays in the processor's cache. Exact but for rounding: 4e-6 of the direct
result, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reverie.runtime import kernels

TILES = 256  # done at a time (measured: 64 to 512 differ by 10 %)
LEAST = 64  # tiles of an image from which it wins (measured; see docs/measured/performance.md)
PART = 2**22  # numbers of a part of a transformed kernel: memory of 32 MiB or more comes from the system at every call
NARROW = 128  # channels below which the transforms cost more than they save (measured: at 16, 3.4 times the direct way)
WIDE = 256  # channels from which packed products win over torch's one call for all of them


def _square(rows: Sequence[Sequence[float]], divisor: float = 1) -> Float[Tensor, "a b"]:
    matrix = torch.tensor(rows, dtype=torch.float32) / divisor
    return torch.kron(matrix, matrix)


@dataclass(frozen=True, eq=False)
class Tiling:
    """Hold the Kronecker squares of the transforms for tiles of `seen` pixels a side, of which `made` are made."""

    made: int
    seen: int
    input: Float[Tensor, "seen2 seen2"]
    kernel: Float[Tensor, "seen2 9"]
    output: Float[Tensor, "made2 seen2"]
    largest: int  # numbers of a transformed kernel, which takes seen2 / 9 times the memory of the kernel
    kept: bool  # whether a layer keeps it, or makes it anew at every call

    def count(self, height: int, width: int) -> int:
        """Return how many tiles an image has."""
        return -(-height // self.made) * -(-width // self.made)


# Lavin and Gray, sections 4.4 and 4.1.
FOUR = Tiling(
    made=4,
    seen=6,
    input=_square(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    kernel=_square([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], 24),
    output=_square([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    largest=2**25,  # 128 MiB
    kept=False,  # at four times the kernel's memory
)
TWO = Tiling(
    made=2,
    seen=4,
    input=_square([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=_square([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], 2),
    output=_square([[1, 1, 1, 0], [0, 1, -1, -1]]),
    largest=2**26,
    kept=True,
)


Matrices = Tensor | list[kernels.Packed]
"""What channels are multiplied by, for each number of a tile: (seen2, c, out) in one tensor, or packed one by one."""


@dataclass(frozen=True, eq=False)
class Transformed:
    """Hold a kernel for a tiling, cut into parts by the channels that are made: (from, to, matrices)."""

    tiling: Tiling
    parts: list[tuple[int, int, Matrices]]


def choose_tiling(channels: int, made: int, height: int, width: int) -> Tiling | None:
    """Choose the tiling that is worth its memory for a kernel of so many channels, at an image's height and width.

    None where the direct way is the quicker.
    """
    if min(channels, made) < NARROW:
        return None
    for tiling in (FOUR, TWO):
        if tiling.count(height, width) >= LEAST and tiling.seen**2 * channels * made <= tiling.largest:
            return tiling
    return None


@torch.no_grad()
def transform_kernel(weight: Float[Tensor, "out c 3 3"], tiling: Tiling) -> Transformed:
    """Transform a kernel."""
    out, channels = weight.shape[:2]
    count = 1 if tiling.kept else -(-(tiling.seen**2 * channels * out) // PART)
    cuts = range(0, out, -(-out // count))
    parts: list[tuple[int, int, Matrices]] = []
    for first, last in zip(cuts, (*cuts[1:], out), strict=True):
        rows = tiling.kernel @ weight[first:last].detach().reshape(-1, 9).T
        parts.append((first, last, rows.view(-1, last - first, channels).mT))
    return Transformed(tiling, parts)


@torch.no_grad()
def pack_kernel(kernel: Transformed) -> Transformed:
    """Give a transformed kernel that is to be kept the form that multiplies fastest."""
    return Transformed(kernel.tiling, [(first, last, _pack_matrices(part)) for first, last, part in kernel.parts])


def _pack_matrices(matrices: Matrices) -> Matrices:
    if isinstance(matrices, Tensor) and min(matrices.shape[1:]) >= WIDE and kernels.available():
        return [kernels.pack_linear(matrix) for matrix in matrices.mT]
    return matrices


def conv2d(
    x: Float[Tensor, "b c h w"],
    kernel: Transformed,
    bias: Float[Tensor, " out"] | None,
    add: Float[Tensor, "b out #h #w"] | None = None,
) -> Float[Tensor, "b out h w"]:
    """Convolve with padding 1 and stride 1, plus `add`, in channels-last."""
    batch, _, height, width = x.shape
    side = kernel.tiling.made
    down, across = -(-height // side), -(-width // side)
    pixels = x.permute(0, 2, 3, 1)
    made = x.new_empty(batch, down * side, across * side, kernel.parts[-1][1])
    rows, images = min(down, max(1, TILES // across)), max(1, TILES // (down * across))
    for first in range(0, batch, images):
        some = slice(first, first + images)
        for top in range(0, down * side, rows * side):
            bottom = min(top + rows * side, down * side)
            above, below = max(0, top - 1), min(height, bottom + 1)
            edge = (0, 0, 1, 1 + across * side - width, above - top + 1, bottom + 1 - below)
            _block(F.pad(pixels[some, above:below], edge), kernel, made[some, top:bottom])
    made = made[:, :height, :width]
    if bias is not None:
        made += bias
    if add is not None:
        made += add.permute(0, 2, 3, 1)
    return made.permute(0, 3, 1, 2)


def _block(seen: Float[Tensor, "n h2 w2 c"], kernel: Transformed, made: Float[Tensor, "n h w out"]) -> None:
    """Convolve some rows of tiles of n images, with a pixel around them, and write what is made."""
    tiling, side = kernel.tiling, kernel.tiling.made
    written = made.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(2, 4, 0, 1, 3, 5)
    image, row, pixel, channel = seen.stride()
    shape = (tiling.seen, tiling.seen, *written.shape[2:5], seen.shape[3])
    cut = seen.as_strided(shape, (row, pixel, image, side * row, side * pixel, channel))
    tiles = (tiling.input @ cut.reshape(tiling.seen**2, -1)).view(tiling.seen**2, -1, seen.shape[3])
    for first, last, matrices in kernel.parts:
        products = _products(tiles, matrices, last - first).flatten(1)
        written[..., first:last] = (tiling.output @ products).view(*written.shape[:5], last - first)


def _products(tiles: Float[Tensor, "seen2 n c"], matrices: Matrices, out: int) -> Float[Tensor, "seen2 n out"]:
    """Multiply the tiles, number by number, by a part of the kernel."""
    if isinstance(matrices, Tensor):
        return torch.bmm(tiles, matrices)
    products = tiles.new_empty(*tiles.shape[:2], out)
    for product, some, matrix in zip(products, tiles, matrices, strict=True):
        product.copy_(kernels.linear(some, matrix, None))
    return products
