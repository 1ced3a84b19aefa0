"""Constant perceived speed, on paths whose speed is known: steep ones, still ones, ones that jump."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.animation.pacing import Pace, pace, unevenness, uniform
from reverie.errors import ReverieError

Path = Callable[[float], np.ndarray]


def length(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def square(a: np.ndarray, b: np.ndarray) -> float:
    """Like LPIPS, which sums squares: a small change twice as large is four times as far."""
    return length(a, b) ** 2


def saturating(a: np.ndarray, b: np.ndarray) -> float:
    """Two pictures that have nothing in common are no farther apart than two others."""
    return 1 - math.exp(-3 * length(a, b))


DISTANCES = (length, square, saturating)


def swing(steepness: float, middle: float = 0.5) -> Path:
    """Stand nearly still, change all at once, stand nearly still."""
    return lambda p: np.array([math.tanh(steepness * (p - middle)), 0.05 * p])


def paced(path: Path, count: int, distance: Callable, knots: Sequence[float] = (0.0, 1.0)) -> Pace:
    return pace(lambda places: (path(p) for p in places), knots, count, distance)


def steps(path: Path, places: Sequence[float], distance: Callable) -> list[float]:
    return [distance(path(a), path(b)) for a, b in pairwise(places)]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("count", [10, 25, 120])
@pytest.mark.parametrize("path", [swing(5), swing(30, 0.3), swing(300, 0.8), swing(1e5, 0.3)])
def test_the_largest_step_is_at_most_one_and_a_half_medians(path: Path, count: int, distance: Callable) -> None:
    result = paced(path, count, distance)
    assert len(result.places) == count
    assert list(result.steps) == steps(path, result.places, distance)
    assert result.unevenness <= 1.5
    assert result.jumps == ()
    assert unevenness(steps(path, uniform((0.0, 1.0), count), distance)) > 1.7


def test_frames_of_a_known_speed_stand_where_its_integral_is_cut_evenly() -> None:
    """On x = p^3 the way is p^3 long, so that frame k of n stands at the cube root of k / n."""
    result = pace(lambda places: (np.array([p**3]) for p in places), (0.0, 1.0), 21, length, tolerance=1.001)
    assert np.allclose(result.places, np.cbrt(np.arange(21) / 20), atol=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_jump_is_one_step_and_all_others_are_even(distance: Callable) -> None:
    def path(p: float) -> np.ndarray:
        return np.array([3.0 * (p > 0.37), p**3])

    result = paced(path, 40, distance)
    assert len(result.jumps) >= 1
    assert all(abs(jump - 0.37) < 1e-6 for jump in result.jumps)
    others = sorted(result.steps)[:-1]
    assert max(others) <= 1.5 * float(np.median(others))
    assert sum(p < 0.37 for p in result.places) > 1  # frames are not all spent on the jump


def test_keyframes_are_met_to_the_bit_and_the_longer_part_gets_more_frames() -> None:
    def path(p: float) -> np.ndarray:
        return np.array([min(p, 1.0) + 3 * max(p - 1.0, 0.0)])  # the second part is three times as long

    knots = (0.0, 1.0, 2.0)
    result = paced(path, 41, length, knots)
    assert all(knot in result.places for knot in knots)
    assert result.places.index(1.0) == 10
    assert result.unevenness == pytest.approx(1)


def test_a_still_part_takes_hardly_any_frames() -> None:
    result = paced(lambda p: np.array([max(p - 0.9, 0.0)]), 21, length)
    assert result.unevenness <= 1.5
    assert sum(p <= 0.9 for p in result.places) <= 2


def test_a_film_that_never_moves_is_left_even() -> None:
    result = paced(lambda p: np.zeros(2), 9, length)
    assert np.allclose(result.places, np.linspace(0, 1, 9))
    assert result.unevenness == 1
    assert result.drawn == 9


def test_pictures_are_drawn_in_order_and_let_go() -> None:
    """A round may not hold more than the three pictures that it compares."""

    class Counted:
        alive = most = 0

        def __init__(self, place: float) -> None:
            self.value = math.tanh(20 * (place - 0.5))
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)

        def __del__(self) -> None:
            Counted.alive -= 1

    asked: list[list[float]] = []

    def render(places: Sequence[float]) -> Iterator[Counted]:
        asked.append(list(places))
        for place in places:
            yield Counted(place)

    result = pace(render, (0.0, 1.0), 50, lambda a, b: abs(a.value - b.value))
    assert all(a < b for places in asked for a, b in pairwise(places))
    assert Counted.most <= 4
    assert result.drawn == sum(len(places) for places in asked)
    assert tuple(asked[-1]) == result.places
    assert result.drawn < 4 * 50


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(-40, 40), min_size=8, max_size=8),
    count=st.integers(8, 60),
    distance=st.sampled_from(DISTANCES),
)
def test_any_smooth_path_is_paced(weights: list[float], count: int, distance: Callable) -> None:
    slopes, shifts = np.array(weights), np.linspace(-8, 8, 8)

    def path(p: float) -> np.ndarray:
        return np.append(np.tanh(slopes * p + shifts), 0.1 * p)

    result = paced(path, count, distance)
    assert result.places[0] == 0
    assert result.places[-1] == 1
    assert all(a < b for a, b in pairwise(result.places))
    assert result.unevenness <= 1.5


def test_uniform_places_are_even_from_knot_to_knot() -> None:
    assert uniform((0.0, 1.0), 5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert uniform((0.0, 1.0, 2.0), 4) == (0.0, 0.5, 1.0, 2.0)


def test_unevenness_of_steps() -> None:
    assert unevenness([1, 2, 3]) == 1.5
    assert unevenness([0, 0]) == 1
    assert unevenness([0, 0, 1]) == math.inf


@pytest.mark.parametrize(
    ("knots", "count", "message"),
    [
        ((0.0, 1.0, 2.0), 2, "2 frames do not reach 3 keyframes; give at least 3"),
        ((0.0,), 5, "places [0.0] do not rise; give two or more, each above the one before"),
        ((0.0, 1.0, 1.0), 5, "places [0.0, 1.0, 1.0] do not rise; give two or more, each above the one before"),
    ],
)
def test_what_cannot_be_placed_is_said_in_one_line(knots: tuple[float, ...], count: int, message: str) -> None:
    for place in (uniform, lambda knots, count: paced(swing(1), count, length, knots)):
        with pytest.raises(ReverieError) as error:
            place(knots, count)
        assert str(error.value) == message
