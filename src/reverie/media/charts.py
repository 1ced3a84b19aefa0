"""Charts by Pillow alone: heat maps and grids with names beside and above, pictures under words' attention, fonts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reverie.media.pictures import grid

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
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
CELL, LARGEST, LEGIBLE = 56, 1600, 12  # pixels: a cell's side, about the longest side of all cells, the least for names
LONGEST_NAME = 40  # characters
MARGIN = 8
STRIP, LETTERS = 18, 12  # pixels: under each picture, for the word, and the word's height
SMALLEST = 96  # pixels: smaller pictures are enlarged, for the words to be read
LETTERS_WIDE, LARGEST_LABEL = 16, 28  # a column's width in heights of its label's letters; pixels
COLOURED = 0.55  # the share of the colour; the rest is the picture's grey
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font has Latin letters alone. These have Chinese, most of them all of CJK and Cyrillic and Greek too.
WIDE = (
    *("NotoSansCJK", "NotoSansSC", "NotoSansTC", "NotoSansHans", "SourceHanSans", "NotoSerifCJK", "SourceHanSerif"),
    *("wqy-", "DroidSansFallback", "uming", "ukai", "unifont", "DejaVuSans.ttf"),
    *("PingFang", "Hiragino Sans GB", "STHeiti", "Arial Unicode", "msyh", "simhei", "simsun", "deng.ttf"),
)
SUFFIXES = {".ttf", ".ttc", ".otf"}
NOWHERE = "\U0010ffff"  # a letter that no font has: drawn as what stands for missing ones


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    show: Callable[[float], str] = "{:.3f}".format,
) -> Image.Image:
    """Draw a matrix of `values`, with the names of `rows` beside it and of `columns` above; `show` writes a value.

    Cells shrink where there are many; names and numbers are left out where they would not be read. A name that no font
    of the system can write is its number, counted from 1.
    """
    cell = max(1, min(CELL, LARGEST // max(len(rows), len(columns), 1)))
    legible = cell >= LEGIBLE
    left_names, top_names = (_with_fonts(names, min(14, cell - 2)) if legible else [] for names in (rows, columns))
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


def _with_fonts(names: Sequence[str], size: int) -> list[tuple[str, Font]]:
    """Return names as they can be drawn, each with the font that writes it."""
    return [
        (name, font_for(name, size) or ImageFont.load_default(size))
        for name in drawable_names(list(map(_short, names)))
    ]


def _short(name: str) -> str:
    """Cut a name: of a long path its end tells more, of a sentence its beginning."""
    name = " ".join(name.split())
    if len(name) <= LONGEST_NAME:
        return name
    return "…" + name[-LONGEST_NAME:] if "/" in name and " " not in name else name[:LONGEST_NAME] + "…"


def _width(font: Font, text: str) -> int:
    return round(font.getlength(text))


def overlay(picture: Image.Image, heat: Float[Tensor, "h w"]) -> Image.Image:
    """Colour a picture's grey by where a map is high, from its least to its largest value."""
    low, high = heat.min(), heat.max()
    levels = ((heat - low) / (high - low).clamp(min=1e-12) * 255).round().byte().numpy()
    places = np.asarray(Image.fromarray(levels).resize(picture.size, Image.Resampling.BICUBIC)) / 255
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    return Image.fromarray((grey * (1 - COLOURED) + viridis(places) * COLOURED).round().astype(np.uint8))


def words_sheet(picture: Image.Image, maps: Mapping[str, Float[Tensor, "h w"]]) -> Image.Image:
    """Lay out the picture and one overlay a word, named with the share of the attention that it had.

    A word that no font of the system can write is its number, counted from 1.
    """
    tiles = [_with_caption(picture.convert("RGB"), "")]
    for name, heat in zip(drawable_names(list(maps)), maps.values(), strict=True):
        tiles.append(_with_caption(overlay(picture, heat), f"{name}  {heat.mean().item():.1%}"))
    return grid(tiles)


def _with_caption(picture: Image.Image, name: str) -> Image.Image:
    times = -(-SMALLEST // picture.width)
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (picture.width, picture.height + STRIP), WHITE)
    tile.paste(picture)
    ImageDraw.Draw(tile).text((3, picture.height + 2), name, fill=BLACK, font=font_for(name, LETTERS))
    return tile


def labelled_grid(
    pictures: Sequence[Image.Image], columns: Sequence[str], rows: Sequence[str] = ("",), blocks: Sequence[str] = ("",)
) -> Image.Image:
    """Lay pictures out in blocks of rows and columns, one block below the other, with the names of each beside them.

    `pictures` go row by row, block by block; smaller ones stand in the middle of their cell. A name that no font of the
    system can write is its number, counted from 1.
    """
    width, height = (max(SMALLEST, *(picture.size[side] for picture in pictures)) for side in (0, 1))
    size = min(LARGEST_LABEL, max(LETTERS, width // LETTERS_WIDE))
    above, beside = _labels(columns, size, width), _labels(rows, size, width)
    titles = _labels(blocks, size + size // 4, width * len(columns))
    left, top = max(label.width for label in beside), max(label.height for label in above)
    heights = [title.height + top + height * len(rows) for title in titles]
    sheet, cells, y = Image.new("RGB", (left + width * len(columns), sum(heights)), WHITE), iter(pictures), 0
    for title, whole in zip(titles, heights, strict=True):
        _centre(sheet, title, (left, y, width * len(columns), title.height))
        corner = y + title.height
        for column, label in enumerate(above):
            _centre(sheet, label, (left + column * width, corner, width, top))
        for row, label in enumerate(beside):
            at = corner + top + row * height
            _centre(sheet, label, (0, at, left, height))
            for column in range(len(columns)):
                _centre(sheet, next(cells), (left + column * width, at, width, height))
        y += whole
    return sheet


def _centre(sheet: Image.Image, part: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Lay a part in the middle of a box of left, top, width and height."""
    left, top, width, height = box
    sheet.paste(part, (left + (width - part.width) // 2, top + (height - part.height) // 2))


def _labels(names: Sequence[str], size: int, width: int) -> list[Image.Image]:
    """Write names, each in lines of at most `width` pixels with a margin around; of none, nothing."""
    return [_label(name, size, width) for name in drawable_names(names)]


def _label(name: str, size: int, width: int) -> Image.Image:
    if not name:
        return Image.new("RGB", (0, 0))
    font = font_for(name, size) or ImageFont.load_default(size)
    text = "\n".join(_wrap(name, font, width - 2 * MARGIN))
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    label = Image.new("RGB", (round(box[2]) + 2 * MARGIN, round(box[3]) + 2 * MARGIN), WHITE)
    ImageDraw.Draw(label).multiline_text((MARGIN, MARGIN), text, BLACK, font, align="center")
    return label


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break a text into lines that are at most so wide, between words where a line has several."""
    lines, rest = [], " ".join(text.split())
    while rest:
        fit = next((n for n in range(2, len(rest) + 1) if font.getlength(rest[:n]) > width), len(rest) + 1) - 1
        if fit < len(rest):
            fit = rest.rfind(" ", 0, fit + 1) if " " in rest[: fit + 1] else fit
        lines.append(rest[:fit])
        rest = rest[fit:].lstrip()
    return lines


@lru_cache(maxsize=256)
def font_for(text: str, size: int) -> Font | None:
    """Return a font that has every letter of a text, at a size in pixels; None where the system has none."""
    letters = "".join(sorted({letter for letter in text if not letter.isspace()}))
    default = ImageFont.load_default(size)
    if writes(default, letters):
        return default
    for file in wide_fonts():
        try:
            font = ImageFont.truetype(file, size)
        except OSError:  # damaged
            continue
        if writes(font, letters):
            return font
    return None


def writes(font: Font, letters: str) -> bool:
    """Tell whether a font has all of these letters."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType: Latin-1 bitmaps
        return letters.isascii()
    box = bytes(font.getmask(NOWHERE))
    return all(letter.isascii() or bytes(font.getmask(letter)) not in (box, b"") for letter in letters)


def drawable_names(names: Sequence[str]) -> list[str]:
    """Return names as they can be drawn: those that no font can write are their numbers, #1, #2, ..."""
    return [name if font_for(name, 12) is not None else f"#{number}" for number, name in enumerate(names, 1)]


@lru_cache(maxsize=1)
def wide_fonts() -> tuple[str, ...]:
    """Find fonts with many letters where systems keep theirs, the best known first."""
    found = [path for folder in font_folders() for path in _files(folder)]
    ranked = [(rank, str(path)) for path in found for rank, name in enumerate(WIDE) if path.name.startswith(name)]
    return tuple(path for _, path in sorted(ranked, key=lambda pair: (pair[0], "Regular" not in pair[1], pair[1])))


def font_folders() -> Iterator[Path]:
    """Name the folders where fonts are kept."""
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")
    elif sys.platform == "darwin":
        yield from (Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts")
    else:
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts")
        yield Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share", "fonts")


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in SUFFIXES)
