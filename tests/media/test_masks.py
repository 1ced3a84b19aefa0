"""Masks, boxes and fills name the right pixels."""

from __future__ import annotations

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.media import masks


def box_mask(size: tuple[int, int], box: masks.Box) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize(
    ("box", "padding", "shape", "expected"),
    [
        ((40, 40, 60, 60), 0, (64, 64), (40, 40, 60, 60)),
        ((40, 40, 60, 60), 10, (64, 64), (30, 30, 70, 70)),
        ((40, 40, 60, 60), 0, (128, 64), (30, 40, 70, 60)),
        ((40, 40, 60, 60), 0, (64, 128), (40, 30, 60, 70)),
        ((0, 0, 10, 20), 0, (64, 64), (0, 0, 20, 20)),
        ((90, 80, 100, 100), 5, (64, 64), (75, 75, 100, 100)),
        ((0, 0, 100, 10), 0, (64, 64), (0, 0, 100, 100)),
    ],
)
def test_the_box_has_the_shape_of_the_drawing_where_there_is_room(
    box: masks.Box, padding: int, shape: tuple[int, int], expected: masks.Box
) -> None:
    assert masks.surroundings(box_mask((100, 100), box), padding, *shape) == expected


def test_a_dark_mask_is_refused() -> None:
    with pytest.raises(ReverieError, match=r"^the mask is dark everywhere"):
        masks.surroundings(Image.new("L", (8, 8), 127), 0, 8, 8)


def test_transparent_is_painted() -> None:
    picture = masks.extend(Image.new("RGB", (8, 8), "red"), 4, 0, 0, 2)
    assert picture.size == (12, 10)
    mask = masks.transparency(picture)
    assert mask.getpixel((3, 5)) == mask.getpixel((8, 9)) == 255
    assert mask.getpixel((4, 7)) == mask.getpixel((11, 0)) == 0


def test_a_softened_mask_ends() -> None:
    mask = masks.soft(box_mask((100, 100), (40, 40, 60, 60)), 4)
    assert mask.getpixel((50, 50)) > 250
    assert 0 < mask.getpixel((39, 50)) < 255
    assert mask.getpixel((20, 50)) == 0
    assert masks.soft(mask, 0) is mask


def test_colours_flow_into_the_mask_from_near() -> None:
    picture = Image.new("RGB", (60, 20), (200, 0, 0))
    picture.paste((0, 0, 200), (30, 0, 60, 20))
    mask = box_mask((60, 20), (10, 0, 50, 20))
    filled = masks.fill_from_surroundings(picture, mask)
    assert filled.getpixel((5, 10)) == (200, 0, 0)
    assert filled.getpixel((55, 10)) == (0, 0, 200)
    red, _, blue = filled.getpixel((11, 10))
    assert red > 150
    assert blue < 50
    red, _, blue = filled.getpixel((48, 10))
    assert blue > 150
    assert red < 50
    # What the mask hides plays no part.
    picture.paste((0, 255, 0), (10, 0, 50, 20))
    assert masks.fill_from_surroundings(picture, mask).tobytes() == filled.tobytes()
