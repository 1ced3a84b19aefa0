"""Distances between pictures: angles of features, and LPIPS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reverie.animation.pacing import angle, lpips, pace, unevenness, uniform
from reverie.codecs.image import to_tensor
from reverie.models.lpips import LPIPS


def shade(level: float) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), round(level), np.uint8))


class Compass:
    """Embed a picture as a direction, as many degrees round as its first pixel is light."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        self.calls += 1
        turn = [math.radians(picture.getpixel((0, 0))[0]) for picture in pictures]
        return torch.tensor([[3 * math.cos(t), 3 * math.sin(t)] for t in turn], dtype=torch.float64)


@pytest.mark.parametrize(("a", "b"), [(0, 90), (10, 11), (0, 180), (77, 77), (200, 20)])
def test_the_angle_is_the_angle(a: int, b: int) -> None:
    assert angle(Compass())(shade(a), shade(b)) == pytest.approx(math.radians(abs(a - b)), abs=1e-7)


def test_small_angles_are_not_lost_in_single_precision() -> None:
    small = 1e-4
    directions = iter([torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(small), math.sin(small)]])])
    assert angle(lambda _: next(directions))(shade(0), shade(1)) == pytest.approx(small, rel=1e-3)


def test_each_picture_is_embedded_once_while_pacing() -> None:
    compass = Compass()
    result = pace(lambda places: (shade(180 * p**2) for p in places), (0.0, 1.0), 9, angle(compass))
    assert compass.calls == result.drawn


def test_pictures_are_paced_by_what_is_seen() -> None:
    def render(places: Sequence[float]) -> list[Image.Image]:
        return [shade(180 * p**4) for p in places]

    even = render(uniform((0.0, 1.0), 12))
    result = pace(render, (0.0, 1.0), 12, angle(Compass()))
    distance = angle(Compass())
    assert unevenness([distance(a, b) for a, b in pairwise(even)]) > 3
    assert result.unevenness <= 1.5


def test_lpips_is_its_model_on_pictures() -> None:
    torch.manual_seed(0)
    model = LPIPS()
    for lin in (model.lin0, model.lin1, model.lin2, model.lin3, model.lin4):
        lin.model[1].weight.abs_()
    a, b = (Image.effect_noise((32, 32), sigma).convert("RGB") for sigma in (20, 90))
    distance = lpips(model)
    assert distance(a, b) == pytest.approx(model(to_tensor([a]), to_tensor([b])).item(), rel=1e-6)
    assert distance(a, b) > 0
    assert distance(a, a) == 0
