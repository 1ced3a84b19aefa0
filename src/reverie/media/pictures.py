"""Picture files: written with the request that made them inside, and read as upright pictures of eight bits.

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
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from reverie.errors import ReverieError
from reverie.files import atomic_write, reason_of

READABLE = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
"""Suffixes of the files that are taken for pictures."""
DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, IndexError, TypeError, struct.error, MemoryError),
    *(Image.DecompressionBombError, OverflowError, KeyError),
)
"""What Pillow raises for damaged files."""

SIDEWAYS = (5, 6, 7, 8)  # EXIF's rotations by a quarter turn
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
        raise ReverieError(f"cannot read {name}: {unreadable(error, source)}") from error


def size_of(source: Encoded, name: str | None = None) -> tuple[int, int]:
    """Return width and height of a picture, upright, by its header alone. Raises ReverieError as `decode`."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
            return (height, width) if turned else (width, height)
    except DAMAGED as error:
        name = name or ("the picture" if isinstance(source, bytes) else f"'{source}'")
        raise ReverieError(f"cannot read {name}: {unreadable(error, source)}") from error


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


# What files that people take for pictures begin with, from some byte on, and what they are.
OTHERS = (
    (4, (b"ftyphei", b"ftyphev", b"ftyphex", b"ftypmif1", b"ftypmsf1"), "a HEIC picture"),
    (4, (b"ftypcrx ",), "a camera's raw picture"),
    (8, (b"CR\2",), "a camera's raw picture"),
    (0, (b"\0\0\0\x0cJXL ", b"\xff\x0a"), "a JPEG XL picture"),
    (0, (b"v/1\x01",), "an OpenEXR picture"),
    (0, (b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR picture"),
    (0, (b"gimp xcf",), "a picture of GIMP"),
    (0, (b"<svg",), "an SVG drawing"),
    (0, (b"%PDF",), "a PDF document"),
    (0, (b"<!doctype", b"<!DOCTYPE", b"<html"), "a web page"),
    (4, (b"ftyp",), "a film"),
    (0, (b"\x1aE\xdf\xa3",), "a film"),
)
HEAD = 1024  # bytes


def unreadable(error: Exception, source: Encoded = b"") -> str:
    """Return why a picture could not be read: the system's reason, or what it is that is no whole picture."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return reason_of(error)
    kind = other_kind(source)
    return f"{kind}, which is not read as a picture; give PNG, JPEG or WebP" if kind else "not a picture, or damaged"


def other_kind(source: Encoded) -> str | None:
    """Return what a file is that people take for a picture and is none that is read; None for whatever else."""
    if isinstance(source, bytes | io.BytesIO):
        head = source[:HEAD] if isinstance(source, bytes) else source.getvalue()[:HEAD]
    else:
        try:
            with Path(source).open("rb") as file:
                head = file.read(HEAD)
        except OSError:
            return None
    if head.lstrip().startswith(b"<?xml") and b"<svg" in head:
        return "an SVG drawing"
    return next((kind for at, marks, kind in OTHERS if head[at:].startswith(marks)), None)


PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what Pillow writes as PNG
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels a side: libjpeg's and libwebp's limits
PREVIEW_SIDE, PREVIEW_QUALITY = 384, 75
PARAMETERS = "parameters"  # AUTOMATIC1111's text chunk, which most tools read
REQUEST = "reverie"  # ours: JSON, enough to make the picture again

# JPEG and WebP have no text chunks. A1111 keeps its parameters in EXIF UserComment; our JSON goes to ImageDescription.
_EXIF_IFD, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
SPECTROGRAM = range(11_000, 11_081)  # Riffusion's tags, see codecs/spectrograms.py
_UNICODE = b"UNICODE\0"  # EXIF 2.3, 4.6.5: the character code that opens a UserComment


def parameters_text(prompt: str, negative: str, fields: Mapping[str, object]) -> str:
    """Write AUTOMATIC1111's `parameters` text.

    `fields` follow on the last line in their order; None is left out, and a value that holds a comma, a colon or a
    newline is JSON-quoted (modules/infotext_utils.py of stable-diffusion-webui).
    """
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in fields.items() if value is not None))
    return "\n".join(lines).strip()


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def save(picture: Image.Image, path: str | Path, *, sign: Callable[[Path, str], None] | None = None) -> None:
    """Write a picture and the texts in its `.info` atomically: beside the target first, then renamed over it.

    `sign` is what `provenance.signer` returns: the file has its name once it is signed.

    The format follows the suffix (.png, .jpg, .webp). Raises ReverieError for another suffix, a picture that is too
    large for the format, and a folder that cannot be written.
    """
    path = Path(path)
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise ReverieError(f"cannot write '{path}': unknown picture format; choose from {', '.join(FORMATS)}")
    if max(picture.size) > (most := LARGEST.get(form, max(picture.size))):
        size = f"{picture.width}x{picture.height}"
        raise ReverieError(f"cannot write '{path}': {size} pixels, where {form} holds {most} a side; write .png")
    with atomic_write(path) as temporary:
        if form == "PNG":
            picture.save(temporary, form, pnginfo=_png_texts(picture), exif=_spectrogram_tags(picture))
        else:
            to_rgb(picture).save(
                temporary, form, quality=95, exif=exif_texts(_texts(picture), _spectrogram_tags(picture))
            )
        if sign is not None:
            sign(temporary, path.name)


def _texts(picture: Image.Image) -> dict[str, str]:
    return {key: picture.info[key] for key in (PARAMETERS, REQUEST) if isinstance(picture.info.get(key), str)}


def _png_texts(picture: Image.Image) -> PngInfo:
    chunks = PngInfo()
    for key, text in _texts(picture).items():
        chunks.add_text(key, text)  # Latin-1 goes to tEXt, everything else (Chinese) to iTXt in UTF-8
    return chunks


def _spectrogram_tags(picture: Image.Image) -> Image.Exif:
    """Return the EXIF that belongs to the picture's content; a camera's (place, rotation) does not."""
    exif = Image.Exif()
    exif.update({tag: value for tag, value in picture.getexif().items() if tag in SPECTROGRAM})
    return exif


def exif_texts(texts: Mapping[str, str], exif: Image.Exif | None = None) -> Image.Exif:
    """Write texts as EXIF, into one that is given or a new one, for files without text chunks."""
    exif = exif or Image.Exif()
    if PARAMETERS in texts:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + texts[PARAMETERS].encode("utf-16-be")
    if REQUEST in texts:
        exif[_IMAGE_DESCRIPTION] = texts[REQUEST]
    return exif


def read_texts(picture: Image.Image) -> dict[str, str]:
    """Read the texts that `save` wrote, from PNG chunks or from EXIF: `parameters`, `reverie`, or neither."""
    texts, exif = _texts(picture), picture.getexif()
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        texts.setdefault(PARAMETERS, comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace"))
    description = exif.get(_IMAGE_DESCRIPTION)
    if isinstance(description, str) and description.startswith("{"):
        texts.setdefault(REQUEST, description)
    return texts


def encode(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file, with options of Pillow's writer."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file, upright, of eight bits where PNG has no such mode."""
    picture = upright(picture)
    return encode(picture if picture.mode in PNG_MODES else eight_bits(picture))


def encode_preview(picture: Image.Image) -> bytes:
    """Return a small JPEG of a picture."""
    small = to_rgb(picture).copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return encode(small, "JPEG", quality=PREVIEW_QUALITY)


def open_picture(path: Encoded) -> Image.Image:
    """Read a picture file, upright, with its texts in `.info`. Raises ReverieError where it is none or damaged."""
    picture = decode(path)
    with suppress(*DAMAGED):  # EXIF of other programs
        picture.info.update(read_texts(picture))
    return picture


def grid(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay equal-sized pictures out row by row on one sheet, as near to a square as it goes unless `columns` says."""
    if not pictures:
        raise ReverieError("a grid needs at least one picture")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet
