"""Do the curves go from 0 to 1 without going back, and do the symmetric ones mirror?"""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest

from reverie.requests.films import EASINGS, EasingName


@pytest.mark.parametrize("name", EASINGS)
def test_curves_rise_from_0_to_1(name: EasingName) -> None:
    values = [EASINGS[name](index / 200) for index in range(201)]
    assert values[0] == 0
    assert values[-1] == 1
    assert all(a <= b + 1e-15 for a, b in pairwise(values))


@pytest.mark.parametrize("name", ["linear", "smooth", "sine", "ease_in_out", "expo", "hold"])
def test_symmetric_curves_mirror(name: EasingName) -> None:
    ease = EASINGS[name]
    assert all(ease(t) == pytest.approx(1 - ease(1 - t)) for t in (0.0, 0.1, 0.3, 0.5))


def test_ease_in_mirrors_ease_out() -> None:
    assert all(EASINGS["ease_in"](t) == pytest.approx(1 - EASINGS["ease_out"](1 - t)) for t in (0.1, 0.4, 0.9))


def test_the_table_has_every_name() -> None:
    assert set(EASINGS) == set(get_args(EasingName))
