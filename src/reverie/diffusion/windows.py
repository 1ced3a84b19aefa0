"""MultiDiffusion: denoising in overlapping windows or tiles whose answers are averaged, for more than a network sees.

At every step each window is denoised on its own, and every column becomes the weighted mean of what the windows over it
answer: the least-squares agreement of MultiDiffusion (Bar-Tal et al. 2302.08113, eq. 5). Windows lie over one another,
and their weights fade to nothing at their edges, so that nowhere an answer begins or ends at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from reverie.diffusion.denoiser import Denoise, Level
from reverie.errors import ReverieError

NEARLY = 0.05  # of a stride: what is missing to a whole number of them is rounding


@dataclass(frozen=True)
class Windows:
    """Hold where windows of `width` columns begin on `length` columns; those that reach beyond the end wrap around.

    Raises ReverieError for windows of nothing and for columns that no window covers.
    """

    length: int
    width: int
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that there is something to cover."""
        if self.length < 1 or self.width < 2:
            raise ReverieError(
                f"windows of {self.width} over {self.length} columns are not possible; give 2 over 1 or more"
            )
        if any(after - before > self.width for before, after in pairwise([*self.starts, self.starts[0] + self.length])):
            raise ReverieError(f"windows of {self.width} columns at {self.starts} leave gaps; let them lie closer")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def whole(self) -> bool:
        """Tell whether the one window is all there is."""
        return self.starts == (0,) and self.length == self.width

    @property
    def centres(self) -> list[float]:
        """Return the middle of each window, in columns."""
        return [start + self.width / 2 for start in self.starts]

    def cut(self, x: Float[Tensor, "b c h length"]) -> Float[Tensor, "rows c h width"]:
        """Return the rows of the first window, then those of the second, ..."""
        return torch.cat([x[..., columns] for columns in self._columns(x.device)])

    def average(self, rows: Float[Tensor, "rows c h width"]) -> Float[Tensor, "b c h length"]:
        """Lay rows back where `cut` took them from; where several windows lie, return their weighted mean."""
        parts = rows.chunk(len(self))
        weights = self.weights(rows)
        laid = rows.new_zeros((*parts[0].shape[:-1], self.length))
        total = rows.new_zeros(self.length)
        for columns, part in zip(self._columns(rows.device), parts, strict=True):
            laid.index_add_(-1, columns, part * weights)
            total.index_add_(0, columns, weights)
        return laid / total

    def _columns(self, device: torch.device) -> list[Int64[Tensor, " width"]]:
        within = torch.arange(self.width, device=device)
        return [(start + within) % self.length for start in self.starts]

    def weights(self, like: Tensor) -> Float[Tensor, " width"]:
        """Return weights that fade in and out as sin^2: two windows that lie half over one another add up to 1."""
        middles = torch.arange(self.width, device=like.device, dtype=torch.float32) + 0.5
        return (math.pi * middles / self.width).sin().square().to(like.dtype)


def line(length: int, width: int, stride: float | None = None) -> Windows:
    """Cover a line from its first column to its last by windows `stride` columns apart, of which the last ends with it.

    Where None, they are as few evenly spread ones as lie half over one another. Raises ReverieError for a line shorter
    than a window.
    """
    if length < width:
        raise ReverieError(f"{length} columns are fewer than a window of {width}; lengthen them first")
    stride = stride or (length - width) / max(1, math.ceil(2 * (length - width) / width)) or width
    gaps = math.ceil((length - width) / stride - NEARLY)
    return Windows(length, width, tuple(min(round(k * stride), length - width) for k in range(gaps + 1)))


def circle(length: int, width: int, stride: float | None = None) -> Windows:
    """Cover a circle, whose last column leads into its first; a window longer than that sees it repeated.

    The windows lie evenly, `stride` columns apart or a little less; half over one another where None.
    """
    count = math.ceil(length / (stride or width / 2) - NEARLY)
    return Windows(length, width, tuple(round(k * length / count) for k in range(count)))


def multi_diffusion(denoise: Denoise, windows: Windows) -> Denoise:
    """Denoise all windows in one batch, in which the rows of the first window come first, and average."""
    if windows.whole:
        return denoise

    def prediction(x: Float[Tensor, "b c h w"], sigma: Level) -> Float[Tensor, "b c h w"]:
        return windows.average(denoise(windows.cut(x), sigma))

    return prediction


Place = tuple[slice, slice]
"""The rows and the columns of an image where a tile lies."""


@dataclass(frozen=True)
class Tiles:
    """Hold tiles over an image: windows over its rows, and windows over its columns, none of which wraps around."""

    rows: Windows
    columns: Windows

    @classmethod
    def over(cls, height: int, width: int, side: int) -> Tiles:
        """Cover an image by tiles of at most `side` a side, as few as lie half over one another."""
        return cls(line(height, min(side, height)), line(width, min(side, width)))

    @property
    def size(self) -> tuple[int, int]:
        """Return the image's height and width."""
        return self.rows.length, self.columns.length

    @property
    def places(self) -> list[Place]:
        """Return where the tiles lie, row by row."""
        rows, columns = ([slice(start, start + one.width) for start in one.starts] for one in (self.rows, self.columns))
        return list(product(rows, columns))

    @property
    def whole(self) -> bool:
        """Tell whether the one tile is all there is."""
        return self.rows.whole and self.columns.whole

    def average(self, parts: Iterable[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c height width"]:
        """Lay parts where `places` are; where several tiles lie, return their weighted mean."""
        laid = total = torch.zeros(())
        for number, (place, part) in enumerate(zip(self.places, parts, strict=True)):
            if not number:
                weights = self.rows.weights(part)[:, None] * self.columns.weights(part)
                laid = part.new_zeros((*part.shape[:2], self.rows.length, self.columns.length))
                total = torch.zeros_like(laid[0, 0])
            laid[..., *place] += part * weights
            total[place] += weights
        return laid / total


def by_tiles(tiles: Tiles, denoise_at: Callable[[Place], Denoise]) -> Denoise:
    """Denoise an image tile by tile, and average; `denoise_at` gives the denoiser of each, which is let go of after it.

    So memory is that of one tile, however large the image is.
    """

    def prediction(x: Float[Tensor, "b c h w"], sigma: Level) -> Float[Tensor, "b c h w"]:
        return tiles.average(denoise_at(place)(x[..., *place], sigma) for place in tiles.places)

    return prediction


def by_rows(denoisers: Sequence[Denoise], rows: Sequence[int]) -> Denoise:
    """Give the first `rows[0]` rows of a batch to the first denoiser, the next `rows[1]` to the second, ..."""

    def prediction(x: Float[Tensor, "b ..."], sigma: Level) -> Float[Tensor, "b ..."]:
        parts = x.split(list(rows))
        return torch.cat([denoise(part, sigma) for denoise, part in zip(denoisers, parts, strict=True)])

    return prediction
