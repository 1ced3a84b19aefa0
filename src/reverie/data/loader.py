"""Data loading in order, from any step, with any number of worker processes, and in equal parts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reverie.errors import ReverieError

Item = TypeVar("Item")
Rows = TypeVar("Rows", bound="Sliced")


class Sliced(Protocol):
    """What has rows: a tensor, a list, a range."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class BatchPart:
    """BatchPart `index` of the `count` equal ones of a batch; a process takes `turns` of them, one after another.

    What a batch holds, and the random numbers of its rows, do not depend on how many parts it falls into.
    """

    index: int = 0
    count: int = 1
    turns: int = 1

    def rows(self, whole: Rows) -> Rows:
        """Return this part's rows of those of a whole batch. Raises ReverieError where they cannot be shared out."""
        share, rest = divmod(len(whole), self.count)
        if rest:
            raise ReverieError(
                f"a batch of {len(whole)} does not divide into {self.count} parts, of {self.count // self.turns} "
                f"processes with accumulate = {self.turns}; give a multiple"
            )
        return whole[self.index * share : (self.index + 1) * share]

    def randn_like(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw normal numbers on the CPU for a whole batch and return the rows of this part, which x holds."""
        return self.rows(torch.randn(self.count * len(x), *x.shape[1:], generator=generator))

    def after(self, step: int) -> tuple[int, BatchPart]:
        """Return the step and the part that this process takes after this part of a step."""
        index = self.index + 1
        return (step, replace(self, index=index)) if index % self.turns else (step + 1, self.first())

    def first(self) -> BatchPart:
        """Return the first part that this process takes."""
        return replace(self, index=self.index // self.turns * self.turns)


WHOLE = BatchPart()


class Indexed(Dataset[Item]):
    """Serve item n as `make(n)`: a pure function of n, so that order and workers do not matter."""

    def __init__(self, make: Callable[[int], Item]) -> None:
        self.make = make

    def __getitem__(self, index: int) -> Item:
        return self.make(index)


class Batches:
    """Serve batch `step` of an endless indexed stream, or a part of it; what comes next is prefetched by workers.

    Batch n holds the items n * size to (n + 1) * size - 1, whatever was asked for before.
    """

    def __init__(self, make: Callable[[int], Any], size: int, workers: int = 0) -> None:
        self.items, self.size, self.workers = Indexed(make), size, workers
        self._next: tuple[int, BatchPart] | None = None
        self._stream: Iterator[Any] = iter(())

    def __call__(self, step: int, part: BatchPart = WHOLE) -> Any:
        """Return the collated items of a part of a step."""
        if (step, part) != self._next:
            indices = _indices(step, part, self.size)
            self._stream = iter(DataLoader(self.items, batch_sampler=indices, num_workers=self.workers))
        self._next = part.after(step)
        return next(self._stream)

    def keys(self, step: int, part: BatchPart = WHOLE) -> list[str]:
        """Name the examples of a part of a step, each once."""
        make, indices = self.items.make, next(_indices(step, part, self.size))
        return [*dict.fromkeys(make.key(index) if isinstance(make, Keyed) else f"item {index}" for index in indices)]


@runtime_checkable
class Keyed(Protocol):
    """A stream that can say which example an item is of."""

    def key(self, index: int) -> str:
        """Name the example of item `index`, for whoever looks for what is wrong with it."""


def shuffled_index(seed: int, turn: int, size: int, place: int) -> int:
    """Return where position `place` of pass `turn` points to: an affine permutation, different in every pass."""
    rng = np.random.default_rng((seed, turn, 4))
    step = int(rng.integers(1, max(2, size)))
    while np.gcd(step, size) != 1:
        step = step % size + 1
    return (place * step + int(rng.integers(size))) % size


def _indices(step: int, part: BatchPart, size: int) -> Iterator[list[int]]:
    while True:
        yield list(part.rows(range(step * size, (step + 1) * size)))
        step, part = part.after(step)
