"""Data loading in order, from any step, with any number of worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")


class Indexed(Dataset[Item]):
    """Serve item n as `make(n)`: a pure function of n, so that order and workers do not matter."""

    def __init__(self, make: Callable[[int], Item]) -> None:
        self.make = make

    def __getitem__(self, index: int) -> Item:
        return self.make(index)


class Batches:
    """Serve batch `step` of an endless indexed stream; consecutive steps are prefetched by workers.

    Batch n holds the items n * size to (n + 1) * size - 1, whatever was asked for before.
    """

    def __init__(self, make: Callable[[int], Any], size: int, workers: int = 0) -> None:
        self.items, self.size, self.workers = Indexed(make), size, workers
        self._next = -1
        self._stream: Iterator[Any] = iter(())

    def __call__(self, step: int) -> Any:
        """Return the collated batch of a step."""
        if step != self._next:
            self._next = step
            indices = _indices(step, self.size)
            self._stream = iter(DataLoader(self.items, batch_sampler=indices, num_workers=self.workers))
        self._next += 1
        return next(self._stream)


def shuffled_index(seed: int, turn: int, size: int, place: int) -> int:
    """Return where position `place` of pass `turn` points to: an affine permutation, different in every pass."""
    rng = np.random.default_rng((seed, turn, 4))
    step = int(rng.integers(1, max(2, size)))
    while np.gcd(step, size) != 1:
        step = step % size + 1
    return (place * step + int(rng.integers(size))) % size


def _indices(step: int, size: int) -> Iterator[list[int]]:
    while True:
        yield list(range(step * size, (step + 1) * size))
        step += 1
