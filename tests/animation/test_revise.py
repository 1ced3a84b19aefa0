"""The film under the drawing is shown at its own speed, whatever the frame rates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

from reverie.animation.timeline import frames_in, source_pictures
from reverie.errors import ReverieError


def film(count: int, read: list[int] | None = None) -> Iterator[Image.Image]:
    for index in range(count):
        if read is not None:
            read.append(index)
        yield Image.new("L", (1, 1), index)


def shown(source_fps: float, fps: float, total: int, count: int = 10) -> list[int]:
    pictures = source_pictures(film(count), source_fps, fps, total, lambda picture: picture)
    return [picture.getpixel((0, 0)) for picture in pictures]


def test_equal_rates_show_each_picture_once() -> None:
    assert shown(25, 25, 10) == list(range(10))


def test_a_faster_film_repeats_and_a_slower_one_leaves_out() -> None:
    assert shown(10, 20, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shown(30, 10, 4) == [0, 3, 6, 9]
    assert shown(24, 30, 10) == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_rounding_loses_no_picture() -> None:
    """At 29.97 frames a second, index / fps * fps falls short of the index now and then."""
    fps = 30_000 / 1001
    assert shown(fps, fps, 250, count=250) == list(range(250))


def test_after_the_end_the_last_picture_stays() -> None:
    assert shown(10, 10, 5, count=3) == [0, 1, 2, 2, 2]


def test_pictures_are_read_as_needed_and_fitted_once() -> None:
    read: list[int] = []
    fitted: list[int] = []

    def fit(picture: Image.Image) -> Image.Image:
        fitted.append(picture.getpixel((0, 0)))
        return picture

    pictures = source_pictures(film(1000, read), 30, 10, 3, fit)
    first = next(pictures)
    assert read == [0]
    rest = list(pictures)
    assert read == list(range(7))
    assert fitted == [0, 3, 6]
    assert [picture.getpixel((0, 0)) for picture in (first, *rest)] == [0, 3, 6]


def test_a_picture_that_stays_is_the_same_object() -> None:
    first, second, third = source_pictures(film(2), 10, 20, 3, lambda picture: picture.copy())
    assert first is second
    assert third is not second


def test_a_film_without_pictures_is_refused() -> None:
    with pytest.raises(ReverieError, match="holds no pictures"):
        list(source_pictures([], 10, 10, 1, lambda picture: picture))


def test_frames_last_as_long_as_the_film() -> None:
    assert frames_in(300, 30, 10) == 100
    assert frames_in(10, 10, 25) == 25
    assert frames_in(1, 60, 10) == 1
