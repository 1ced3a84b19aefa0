"""Is a batch the same, whatever came before it and however many workers made it?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reverie.data.loader import Batches

SIZE = 3


def item(index: int) -> tuple[np.ndarray, str]:
    return np.random.default_rng(index).random(4, np.float32), f"item {index}"


def expected(step: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    rows, texts = zip(*(item(index) for index in range(step * SIZE, (step + 1) * SIZE)), strict=True)
    return torch.from_numpy(np.stack(rows)), texts


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_any_step(workers: int) -> None:
    batches = Batches(item, SIZE, workers)
    for step in (0, 1, 2, 7, 8, 3, 3, 0):
        rows, texts = batches(step)
        wanted_rows, wanted_texts = expected(step)
        assert torch.equal(rows, wanted_rows)
        assert tuple(texts) == wanted_texts


def test_only_what_is_asked_for_is_made_without_workers() -> None:
    made: list[int] = []
    batches = Batches(lambda index: made.append(index) or index, SIZE)
    batches(5)
    batches(6)
    assert made == list(range(15, 21))
