"""How is a matrix drawn? As a heat map: one cell a number, names beside and above, by Pillow alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from reverie.media.lettering import Font, font_for, labelled

Colour = tuple[int, int, int]

# Nine points of viridis (Smith and van der Walt, 2015), which is even to the eye and keeps its order in grey.
VIRIDIS: tuple[Colour, ...] = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
BLACK, WHITE, GREY = (0, 0, 0), (255, 255, 255), (235, 235, 235)
CELL, LARGEST, LEGIBLE = 56, 1600, 12  # pixels: a cell's side, about the longest side of all cells, the least for names
LONGEST_NAME = 40  # characters
MARGIN = 8


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    show: Callable[[float], str] = "{:.3f}".format,
) -> Image.Image:
    """Draw a matrix. Cells shrink where there are many; names and numbers are left out where they would not be read.

    A name that no font of the system can write is its number, counted from 1.
    """
    cell = max(1, min(CELL, LARGEST // max(len(rows), len(columns), 1)))
    legible = cell >= LEGIBLE
    left_names, top_names = (_lettered(names, min(14, cell - 2)) if legible else [] for names in (rows, columns))
    left = 2 * MARGIN + max((_width(font, name) for name, font in left_names), default=0)
    top = 2 * MARGIN + max((_width(font, name) for name, font in top_names), default=0)
    width, height = cell * len(columns), cell * len(rows)
    sheet = Image.new("RGB", (left + width + MARGIN, top + height + MARGIN), WHITE)
    if not width or not height:
        return sheet
    sheet.paste(_cells(values).resize((width, height), Image.Resampling.NEAREST), (left, top))
    draw = ImageDraw.Draw(sheet)
    for index, (name, font) in enumerate(left_names):
        draw.text((left - MARGIN, top + cell * index + cell // 2), name, BLACK, font, anchor="rm")
    for index, (name, font) in enumerate(top_names):
        _upright(sheet, name, font, (left + cell * index + cell // 2, top - MARGIN))
    if cell >= CELL // 2:
        _numbers(draw, values, cell, (left, top), show)
    return sheet


def colour_of(value: float, low: float, high: float) -> tuple[Colour, Colour]:
    """Return the colour of a value in a range, and that of an ink which is read on it."""
    place = (value - low) / (high - low) if high > low else 0.5
    scaled = min(max(place, 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(scaled), len(VIRIDIS) - 2)
    ends = zip(VIRIDIS[index], VIRIDIS[index + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (scaled - index)) for a, b in ends)
    return (red, green, blue), BLACK if place > 0.6 else WHITE


def viridis(places: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """Return the colours, 0 to 255, of places on the scale, 0 to 1."""
    points, scale = np.linspace(0, 1, len(VIRIDIS)), np.array(VIRIDIS)
    return np.stack([np.interp(places, points, scale[:, channel]) for channel in range(3)], -1)


def _cells(values: Sequence[Sequence[float]]) -> Image.Image:
    """Draw the matrix with one pixel a cell."""
    matrix = np.asarray(values, dtype=np.float64)
    low, high = matrix.min(), matrix.max()
    places = (matrix - low) / (high - low) if high > low else np.full_like(matrix, 0.5)
    return Image.fromarray(viridis(places).round().astype(np.uint8))


def _numbers(
    draw: ImageDraw.ImageDraw,
    values: Sequence[Sequence[float]],
    cell: int,
    corner: tuple[int, int],
    show: Callable[[float], str],
) -> None:
    low, high = min(map(min, values)), max(map(max, values))
    font = ImageFont.load_default(max(8, min(13, cell // 4)))
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            _, ink = colour_of(value, low, high)
            place = (corner[0] + cell * x + cell // 2, corner[1] + cell * y + cell // 2)
            draw.text(place, show(value), ink, font, anchor="mm")


def _upright(sheet: Image.Image, text: str, font: Font, place: tuple[int, int]) -> None:
    """Write a text upwards, so that it ends above `place`."""
    left, top, right, bottom = (round(side) for side in font.getbbox(text))
    if right <= left or bottom <= top:
        return
    line = Image.new("L", (right, bottom + 2), 255)
    ImageDraw.Draw(line).text((0, 0), text, 0, font)
    turned = line.transpose(Image.Transpose.ROTATE_90)
    sheet.paste(turned, (place[0] - turned.width // 2, place[1] - turned.height))


def _lettered(names: Sequence[str], size: int) -> list[tuple[str, Font]]:
    """Return names as they can be drawn, each with the font that writes it."""
    return [(name, font_for(name, size) or ImageFont.load_default(size)) for name in labelled(list(map(_short, names)))]


def _short(name: str) -> str:
    """Cut a name: of a long path its end tells more, of a sentence its beginning."""
    name = " ".join(name.split())
    if len(name) <= LONGEST_NAME:
        return name
    return "…" + name[-LONGEST_NAME:] if "/" in name and " " not in name else name[:LONGEST_NAME] + "…"


def _width(font: Font, text: str) -> int:
    return round(font.getlength(text))
