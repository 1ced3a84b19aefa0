"""Frames stand where the sound or what is seen puts them, and the keyframes on frames of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reverie.animation.pacing import unevenness
from reverie.animation.timeline import Timeline, by_sight, by_sound


def picture(place: float) -> Image.Image:
    """One picture of 1,000,000 shades of grey, of which most change early between two keyframes."""
    part = place - int(place)
    return Image.fromarray(np.full((1, 1), (int(place) + part**0.25) * 1e6, np.int32))


def render(places: Sequence[float]) -> Iterator[Image.Image]:
    return map(picture, places)


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(abs(np.asarray(a).item() - np.asarray(b).item()))


def steps(places: Sequence[float]) -> list[float]:
    return [distance(picture(a), picture(b)) for a, b in pairwise(places)]


def test_one_speed_for_the_whole_film() -> None:
    places = by_sight(Timeline((0, 10, 20), 21), render, distance)
    assert len(places) == 21
    assert {0.0, 1.0, 2.0} <= set(places)
    assert unevenness(steps(places)) <= 1.5


def test_a_closed_film_stops_a_step_before_its_beginning() -> None:
    places = by_sight(Timeline((0, 10, 20), 20), render, distance)
    assert len(places) == 20
    assert places[0] == 0
    assert places[-1] < 2
    assert unevenness(steps([*places, 2.0])) <= 1.5


def test_keyframes_with_times_stay_and_the_film_stands_around_them() -> None:
    places = by_sight(Timeline((2, 10, 40), 45), render, distance, timed=True)
    assert len(places) == 45
    assert places[:3] == (0, 0, 0)
    assert places[10] == 1
    assert places[40:] == (2, 2, 2, 2, 2)
    for begin, end in ((2, 10), (10, 40)):
        assert unevenness(steps(places[begin : end + 1])) <= 1.5


@dataclass(frozen=True)
class Click:
    """Two seconds of silence with one click."""

    at: float
    rate: int = 22_050

    @property
    def samples(self) -> Tensor:
        wave = torch.zeros(1, 2 * self.rate)
        wave[0, int(self.at * self.rate)] = 1
        return wave


@pytest.mark.parametrize("at", [0.5, 1.4])
def test_the_sound_moves_the_path(at: float) -> None:
    places = np.array(by_sound(Timeline((0, 50), 51), 25, Click(at), "energy", 0.0))
    assert (places[0], places[50]) == (0, 1)
    assert abs(np.diff(places).argmax() / 25 - at) < 0.1
    assert places[round((at + 0.1) * 25)] - places[round((at - 0.1) * 25)] > 0.8


def test_the_film_stands_before_its_first_keyframe_and_after_its_last() -> None:
    places = by_sound(Timeline((5, 30), 40), 25, Click(0.7), "onsets", 0.5)
    assert len(places) == 40
    assert set(places[:6]) == {0.0}
    assert set(places[30:]) == {1.0}
