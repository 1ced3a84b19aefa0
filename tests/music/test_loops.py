"""Does stretching around a circle keep what goes around it?"""

from __future__ import annotations

import math

import pytest
import torch

from reverie.music.plan import resample_circle, stretch_circle


@pytest.mark.parametrize(("old", "new"), [(1000, 990), (1000, 1013), (1001, 1000), (1000, 1001), (64, 64)])
def test_harmonics_of_the_loop_are_the_same_at_another_length(old: int, new: int) -> None:
    def tone(count: int) -> torch.Tensor:
        time = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
        return (0.5 + (3 * time + 1).sin() + (20 * time).cos())[None]

    assert torch.allclose(resample_circle(tone(old), new), tone(new), atol=1e-9)


def test_columns_in_between_are_mixed_and_the_last_goes_on_to_the_first() -> None:
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert stretch_circle(x, 8).tolist() == [[0, 0.5, 1, 1.5, 2, 2.5, 3, 1.5]]
    assert stretch_circle(x, 2).tolist() == [[0, 2]]
    assert stretch_circle(x, 4) is x


def test_a_rolled_circle_is_stretched_to_the_rolled_one() -> None:
    x = torch.randn(2, 12)
    assert torch.allclose(stretch_circle(x.roll(4, -1), 9), stretch_circle(x, 9).roll(3, -1), atol=1e-6)
