"""How is a 3x3 convolution computed with a quarter of its multiplications? By Winograd's filtering, F(4x4, 3x3).

An image is cut into tiles of 6x6 pixels that overlap by two. Tile and kernel are transformed so that multiplying them
number by number gives the 4x4 convolved pixels, transformed: for all channels, 36 products of matrices (Lavin and Gray
1509.09308). Here the transforms too are products, with the Kronecker squares of their matrices, and a few rows of tiles
are done at a time, so that what lies between two products stays in the processor's cache. Exact but for rounding: 2e-6
of the direct result, in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MADE, SEEN = 4, 6  # pixels of a tile's side that are made, and that are seen
TILES = 256  # done at a time (measured: 64 to 512 differ by 10 %)
LEAST = 64  # tiles of an image from which it wins (measured; see docs/performance.md)
LARGEST = 2**25  # numbers of a transformed kernel, 128 MiB: it takes four times the memory of the kernel

# Lavin and Gray, section 4.4: for the input, the kernel and the output.
INPUT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float32,
)
KERNEL = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)
INPUT_2D, OUTPUT_2D = torch.kron(INPUT, INPUT), torch.kron(OUTPUT, OUTPUT)


def wins(channels: int, made: int, height: int, width: int) -> bool:
    """Tell whether it is worth its memory for a kernel of so many channels, at an image's height and width."""
    tiles = -(-height // MADE) * -(-width // MADE)
    return tiles >= LEAST and SEEN**2 * channels * made <= LARGEST


@torch.no_grad()
def transformed(weight: Float[Tensor, "out c 3 3"]) -> Float[Tensor, "36 c out"]:
    """Transform a kernel."""
    both = torch.einsum("ij,ocjk,lk->ilco", KERNEL, weight.detach(), KERNEL)
    return both.reshape(SEEN**2, weight.shape[1], weight.shape[0]).contiguous()


def conv2d(
    x: Float[Tensor, "b c h w"],
    kernel: Float[Tensor, "36 c out"],
    bias: Float[Tensor, " out"] | None,
    add: Float[Tensor, "b out #h #w"] | None = None,
) -> Float[Tensor, "b out h w"]:
    """Convolve with padding 1 and stride 1, plus `add`, in channels-last."""
    batch, _, height, width = x.shape
    down, across = -(-height // MADE), -(-width // MADE)
    edge = (0, 0, 1, 1 + across * MADE - width, 1, 1 + down * MADE - height)
    padded = F.pad(x.permute(0, 2, 3, 1), edge)
    made = x.new_empty(batch, down * MADE, across * MADE, kernel.shape[2])
    rows = max(1, TILES // across)
    for image in range(batch):
        for top in range(0, down, rows):
            count = min(rows, down - top)
            seen = padded[image, MADE * top : MADE * (top + count) + 2]
            _tiles(made[image, MADE * top : MADE * (top + count)], across).copy_(_block(seen, count, across, kernel))
    made = made[:, :height, :width]
    if bias is not None:
        made += bias
    if add is not None:
        made += add.permute(0, 2, 3, 1)
    return made.permute(0, 3, 1, 2)


def _block(
    seen: Float[Tensor, "h w c"], down: int, across: int, kernel: Tensor
) -> Float[Tensor, "4 4 down across out"]:
    """Convolve some rows of tiles."""
    row, pixel, channel = seen.stride()
    shape, strides = (SEEN, SEEN, down, across, seen.shape[2]), (row, pixel, MADE * row, MADE * pixel, channel)
    tiles = seen.as_strided(shape, strides).reshape(SEEN**2, -1)
    products = torch.bmm((INPUT_2D @ tiles).view(SEEN**2, down * across, -1), kernel)
    return (OUTPUT_2D @ products.view(SEEN**2, -1)).view(MADE, MADE, down, across, -1)


def _tiles(made: Float[Tensor, "h w out"], across: int) -> Float[Tensor, "4 4 down across out"]:
    """View rows of pixels as tiles."""
    return made.unflatten(1, (across, MADE)).unflatten(0, (-1, MADE)).permute(1, 3, 0, 2, 4)
