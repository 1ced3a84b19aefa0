"""Decoding pictures: any file that Pillow reads, as an upright RGB or RGBA picture of eight bits.

The one reader of drawing, training, search, curation and CLIP. What it decides:

- EXIF's rotation is applied;
- grey of more than eight bits is scaled to eight, where Pillow itself clips it to white;
- palettes, bilevel, grey and CMYK pictures become RGB, or RGBA where something is transparent;
- of an animation the first frame is taken;
- `to_rgb` lays what is transparent on white.

CLIP's references (openai/CLIP, open_clip) neither turn a picture nor lay it on white: their rule is
`read_stored(source).convert("RGB")`.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps

from reverie.errors import ReverieError
from reverie.files import reason_of

READABLE = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
"""Suffixes of the files that are taken for pictures."""
DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, IndexError, TypeError, struct.error, MemoryError),
    *(Image.DecompressionBombError, OverflowError, KeyError),
)
"""What Pillow raises for damaged files."""

Encoded = str | Path | bytes | io.BytesIO
"""A picture's file, or what it holds."""


def decode(source: Encoded, name: str | None = None) -> Image.Image:
    """Read a picture, upright, as RGB or RGBA; the file's texts and tags are in `.info`.

    Raises ReverieError where there is none or it is damaged; `name` is what the message calls it, else its file.
    """
    return upright(read_stored(source, name))


def read_stored(source: Encoded, name: str | None = None) -> Image.Image:
    """Read a picture as RGB or RGBA of eight bits, as it is stored: not turned as EXIF says. Raises ReverieError."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            return eight_bits(opened)
    except DAMAGED as error:
        name = name or ("the picture" if isinstance(source, bytes) else f"'{source}'")
        raise ReverieError(f"cannot read {name}: {unreadable(error)}") from error


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF says; EXIF that is damaged turns nothing."""
    with suppress(*DAMAGED):
        return ImageOps.exif_transpose(picture)
    return picture


def eight_bits(picture: Image.Image) -> Image.Image:
    """Convert any picture to RGB, or to RGBA where some of it may be transparent, a copy with its `.info`.

    Integers above eight bits are taken for sixteen, as PNG's and most of TIFF's are; floating point for 0 to 1 where
    nothing is above, else for 0 to 255.
    """
    if picture.mode == "F":
        _, high = picture.getextrema()
        scale = 255.0 if high <= 1.0 else 1.0  # type: ignore[operator]
        return picture.point(lambda level: level * scale + 0.5).convert("L").convert("RGB")
    if picture.mode.startswith("I"):
        levels = picture.convert("I")
        grey = levels.point(lambda level: level * (1 / 257) + 0.5).convert("L").convert("RGB")
        if isinstance(clear := picture.info.get("transparency"), int):  # PNG's tRNS: this level alone is transparent
            import numpy as np

            grey.putalpha(Image.fromarray((np.asarray(levels) != clear).astype(np.uint8) * 255))
        grey.info = {name: value for name, value in picture.info.items() if name != "transparency"}
        return grey
    if picture.mode in ("RGB", "RGBA") and "transparency" not in picture.info:
        return picture.copy()
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any picture to RGB of eight bits; what is transparent is laid on white."""
    picture = picture if picture.mode == "RGB" and "transparency" not in picture.info else eight_bits(picture)
    if picture.mode == "RGB":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def unreadable(error: Exception) -> str:
    """Return the system's reason where the file could not be read, else that it is no whole picture."""
    by_system = isinstance(error, OSError) and error.errno is not None
    return reason_of(error) if by_system or isinstance(error, MemoryError) else "not a picture, or damaged"
