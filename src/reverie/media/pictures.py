"""Picture files: written with the request that made them inside, and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reverie.errors import ReverieError
from reverie.files import atomic_write
from reverie.media.decoding import DAMAGED, Encoded, decode, to_rgb

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels a side: libjpeg's and libwebp's limits
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
