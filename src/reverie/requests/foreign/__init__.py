"""Which request is meant by a picture that another program made? As far as it tells, and what cannot be honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from reverie.errors import ReverieError
from reverie.media.pictures import PARAMETERS, open_picture
from reverie.requests.foreign import a1111, comfyui, invokeai, keywords
from reverie.requests.foreign.draft import Draft
from reverie.requests.pictures import TextToImage

CODES = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16-be", b"JIS\0\0\0\0\0": "shift_jis", bytes(8): "utf-8"}


class Reading(NamedTuple):
    """Hold what a picture tells: the request, the name of the model, and what could not be honoured, a line each."""

    request: TextToImage
    model: str
    not_honoured: tuple[str, ...]


def read_foreign(picture: Image.Image | str | Path) -> Reading:
    """Read the settings that AUTOMATIC1111, ComfyUI, InvokeAI or a user of diffusers left in a picture.

    They stand in the text chunks of a PNG, or in the EXIF of a JPEG or WebP. Raises ReverieError where there are none,
    or they are damaged.
    """
    if not isinstance(picture, Image.Image):
        picture = open_picture(picture)
    try:
        draft = _draft(texts_of(picture))
    except ReverieError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ReverieError(f"the picture's settings are damaged: {error!r}") from error
    if draft is None:
        raise ReverieError("this picture does not say how it was made; give one that still has its metadata")
    if "width" not in draft.fields:
        draft.size(*picture.size)
    return Reading(TextToImage(**draft.fields), draft.model, tuple(draft.missed))


def _draft(texts: dict[str, str]) -> Draft | None:
    """Read the first text that is understood; a picture may carry those of several programs."""
    if text := texts.get("invokeai_metadata"):
        return invokeai.read(_object(text))
    if text := texts.get("sd-metadata"):
        return invokeai.read_old(_object(text))
    if text := texts.get("Dream"):
        return invokeai.read_dream(text)
    if text := texts.get(PARAMETERS):
        return keywords.read(_object(text)) if text.lstrip().startswith("{") else a1111.read(text)
    if (text := texts.get("prompt", "")).lstrip().startswith("{"):
        return comfyui.read(_object(text))
    return keywords.read(dict(texts)) if keywords.understands(texts) else None


def texts_of(picture: Image.Image) -> dict[str, str]:
    """Collect a picture's texts by name; those of EXIF under the names that they would have in a PNG."""
    texts = {name: value for name, value in picture.info.items() if isinstance(name, str) and isinstance(value, str)}
    exif = picture.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes | str) and (text := _decoded(comment)):
        texts[PARAMETERS] = text
    for value in exif.values():  # ComfyUI's WebP: "prompt:{...}" and "workflow:{...}" under tags of cameras
        if isinstance(value, str) and value.startswith("prompt:"):
            texts.setdefault("prompt", value.removeprefix("prompt:"))
    for value in list(texts.values()):  # some tools write one JSON object under a name of their own
        if value.lstrip().startswith("{") and keywords.understands(inner := _object_or_nothing(value)):
            texts.setdefault(PARAMETERS, json.dumps(inner))
    return texts


def _decoded(comment: bytes | str) -> str:
    """Decode a UserComment by the eight bytes that open it (EXIF 2.3, 4.6.5)."""
    if isinstance(comment, str):
        return comment.strip("\0 ")
    encoding = CODES.get(comment[:8])
    if encoding is None:
        return comment.decode(errors="replace").strip("\0 ")
    body = comment[8:]
    if encoding == "utf-16-be" and body[1::2].count(0) > body[::2].count(0):
        encoding = "utf-16-le"  # which is wrong, and done
    return body.decode(encoding, errors="replace").strip("\0 ")


def _object(text: str) -> dict[str, object]:
    data = _object_or_nothing(text)
    if not data:
        raise ReverieError(f"the picture's settings are damaged: {text[:40]!r} is no JSON object")
    return data


def _object_or_nothing(text: str) -> dict[str, object]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
