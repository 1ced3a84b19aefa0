"""Are the hints what scipy computes, pixel by pixel? And are the edges where the shapes are?"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from reverie.errors import ReverieError
from reverie.media.edges import PREPROCESSORS, blur, canny, hysteresis, lineart, scribble, softedge


def scene() -> Image.Image:
    """Draw shapes of several contrasts over a slope and a little noise."""
    noise = np.random.default_rng(0).normal(0, 4, (48, 60, 3))
    slope = np.linspace(80, 140, 60)[None, :, None]
    picture = Image.fromarray((slope + noise).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 6, 30, 34), fill="white")
    draw.rectangle((34, 10, 52, 40), fill=(150, 60, 60), outline="black")
    return picture


def reference(picture: Image.Image, low: float, high: float, sigma: float) -> np.ndarray:
    """Follow Canny's paper with scipy's filters and a loop over the pixels."""
    levels = np.asarray(picture.convert("RGB"), dtype=float) @ [0.299, 0.587, 0.114]
    levels = ndimage.gaussian_filter(levels, sigma, mode="nearest")
    down, right = (ndimage.sobel(levels, axis, mode="nearest") for axis in (0, 1))
    strength = np.pad(np.hypot(down, right), 1)
    ridge = np.zeros_like(levels)
    for y, x in np.ndindex(levels.shape):
        degrees = np.degrees(np.arctan2(down[y, x], right[y, x])) % 180
        dy, dx = {0: (0, 1), 1: (1, 1), 2: (1, 0), 3: (1, -1), 4: (0, 1)}[round(degrees / 45)]
        here = strength[y + 1, x + 1]
        if here >= strength[y + 1 + dy, x + 1 + dx] and here > strength[y + 1 - dy, x + 1 - dx]:
            ridge[y, x] = here
    parts, _ = ndimage.label(ridge > low, structure=np.ones((3, 3)))
    return np.isin(parts, np.unique(parts[ridge > high])) & (parts > 0)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_canny_is_what_scipy_computes(sigma: float) -> None:
    edges = np.asarray(canny(scene(), 60.0, 200.0, sigma))
    expected = reference(scene(), 60.0, 200.0, sigma)
    assert 50 < expected.sum() < 500
    assert (edges == np.where(expected, 255, 0)[:, :, None]).all()


def test_a_disc_has_a_thin_closed_edge_on_its_circle() -> None:
    picture = Image.new("L", (64, 64))
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill=255)
    y, x = np.nonzero(np.asarray(canny(picture))[:, :, 0])
    radius = np.hypot(y - 32, x - 32)
    assert np.abs(radius - 20).max() < 1.5
    assert len(y) < 1.3 * 2 * np.pi * 20
    angles = np.sort(np.arctan2(y - 32, x - 32))
    assert np.diff(angles).max() < 0.15


def test_nothing_to_see() -> None:
    assert not np.asarray(canny(Image.new("RGB", (20, 10), "teal"))).any()
    assert not np.asarray(lineart(Image.new("RGB", (20, 10), "teal"))).any()


def test_weak_edges_live_by_strong_ones() -> None:
    weak = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    strong = np.zeros_like(weak)
    strong[0, 0] = True
    assert hysteresis(weak, strong).tolist() == [
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False] * 5,
    ]


def test_lineart_is_a_difference_of_gaussians() -> None:
    levels = np.asarray(scene(), dtype=float) @ [0.299, 0.587, 0.114]
    wide, narrow = (ndimage.gaussian_filter(levels, sigma, mode="nearest", truncate=4) for sigma in (1.6, 1.0))
    expected = (12 * (wide - narrow)).clip(0, 255)
    assert np.abs(np.asarray(lineart(scene()))[:, :, 0] - expected).max() <= 0.51


def test_blur_keeps_the_colours_and_takes_the_detail() -> None:
    before, after = (np.asarray(picture, dtype=float) for picture in (scene(), blur(scene())))
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 3
    assert np.diff(after, axis=1).std() < np.diff(before, axis=1).std() / 3


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_every_preprocessor_takes_every_mode(name: str, mode: str) -> None:
    hint = PREPROCESSORS[name](scene().convert(mode))
    assert (hint.mode, hint.size) == ("RGB", (60, 48))


def test_thresholds_in_order() -> None:
    with pytest.raises(ReverieError, match="thresholds 200 and 100 are not in order"):
        canny(scene(), 200.0, 100.0)


def test_scribbles_are_those_of_controlnets_annotator() -> None:
    """scribble_xdog: 255 where 2 * (255 - clip(255 - min(g2 - g1))) > 32."""
    levels = np.asarray(scene(), dtype=float)
    first, second = (ndimage.gaussian_filter(levels, (s, s, 0), mode="nearest") for s in (0.5, 5.0))
    expected = (second - first).min(2) > 16
    drawn = np.asarray(scribble(scene()))[..., 0] == 255
    assert 0.02 < expected.mean() < 0.5
    assert (drawn != expected).mean() < 0.002


def test_soft_edges_are_as_bright_as_they_are_steep() -> None:
    levels = np.asarray(scene(), dtype=float) @ [0.299, 0.587, 0.114]
    levels = ndimage.gaussian_filter(levels, 2.0, mode="nearest")
    strength = np.hypot(*(ndimage.sobel(levels, axis, mode="nearest") for axis in (0, 1)))
    assert np.asarray(softedge(scene()))[..., 0] == pytest.approx(strength * 255 / strength.max(), abs=1)
    assert not np.asarray(softedge(Image.new("RGB", (9, 9), "red"))).any()
