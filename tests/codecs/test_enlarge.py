"""Pictures enlarged tile by tile: the whole's result where the network sees no further than a tile's margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.codecs import image
from reverie.codecs.image import enlarge, enlarge_tiles, to_pictures
from reverie.models.upscalers import CompactConfig, RRDBConfig, RRDBNet, SRVGGNet, SwinIR, SwinIRConfig, Upscaler


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def check_alike(one: Image.Image, other: Image.Image) -> None:
    """Check that two pictures differ by rounding alone: by a level, at one place in a hundred."""
    differences = np.asarray(one, dtype=int) - np.asarray(other, dtype=int)
    assert abs(differences).max() <= 1
    assert (differences != 0).mean() < 0.01


@pytest.mark.parametrize(
    "network",
    [
        SRVGGNet(CompactConfig(features=4, layers=3, scale=2)),  # sees 5 pixels far
        RRDBNet(RRDBConfig(features=4, growth=4, blocks=1, unshuffle=2)),
        SwinIR(SwinIRConfig(width=8, depths=(2,), heads=2, hidden=16, scale=2)),  # sees two windows of 8 far
    ],
    ids=["compact", "folded", "windows"],
)
def test_tiles_give_what_the_whole_gives(network: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    small = picture(131, 70)
    with torch.no_grad():
        (whole,) = to_pictures(network(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255) * 2 - 1)
    check_alike(enlarge(network, small, whole.size), whole)
    monkeypatch.setattr(image, "TILE", 64)
    monkeypatch.setattr(image, "RAMP", 4)
    steps = list(enlarge_tiles(network, small))
    assert [(step.done, step.total) for step in steps] == [(n, 10) for n in range(1, 11)]
    assert steps[-1].picture is not None
    check_alike(steps[-1].picture, whole)


def test_a_transparent_picture_stays_so() -> None:
    network = SRVGGNet(CompactConfig(features=4, layers=1, scale=2))
    small = picture(9, 7, "RGBA")
    small.info["parameters"] = "a bear"
    larger = enlarge(network, small, (18, 14))
    assert (larger.mode, larger.size, larger.info) == ("RGBA", (18, 14), {"parameters": "a bear"})
    assert (
        larger.getchannel("A").tobytes() == small.getchannel("A").resize((18, 14), Image.Resampling.LANCZOS).tobytes()
    )


def test_a_picture_passes_until_it_is_large_enough() -> None:
    network, small = SRVGGNet(CompactConfig(features=4, layers=1, scale=2)), picture(8, 6)
    twice = enlarge(network, enlarge(network, small, (16, 12)), (32, 24))
    assert enlarge(network, small, (20, 16)).tobytes() == twice.resize((20, 16), Image.Resampling.LANCZOS).tobytes()
