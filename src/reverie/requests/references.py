"""How is a picture given to a request? As a file, in memory or as a data URL; it is remembered by its SHA-256."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field, SerializationInfo, model_serializer, model_validator

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.media.decoding import decode, eight_bits, upright
from reverie.media.masks import PAINTED
from reverie.requests.base import RECORDED, Frozen

DATA_URL = "data:"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what Pillow writes as PNG


class Picture(Frozen):
    """Hold a picture that a request is about: `data` are its file's bytes, None where only path and sum are known.

    Where a request takes one, give a path, a PIL image or a data URL. In JSON it is a data URL; in the metadata of the
    pictures made from it, its path and its sum. Raises ReverieError for anything that is no picture.
    """

    sha256: str
    path: str | None = None
    data: bytes | None = Field(default=None, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _take(cls, given: Any) -> Any:
        if isinstance(given, Image.Image):
            return _known(_png(given), None)
        if isinstance(given, str) and given.startswith(DATA_URL):
            return _known(_from_data_url(given), None)
        if isinstance(given, str | Path):
            path = Path(given)
            return _known(_read(path), str(path.absolute()))
        if isinstance(given, cls | dict):
            return given
        raise ReverieError(f"{type(given).__name__} is no picture; give a path, a PIL image or a data URL")

    @model_serializer(mode="plain")
    def _write(self, info: SerializationInfo) -> str | dict[str, str | None]:
        if self.data is None or info.context == RECORDED:
            return {"path": self.path, "sha256": self.sha256}
        with Image.open(io.BytesIO(self.data)) as opened:
            kind = (opened.format or "png").lower()
        return f"{DATA_URL}image/{kind};base64,{base64.b64encode(self.data).decode()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def size(self) -> tuple[int, int] | None:
        """Return width and height in pixels, or None while the data is not at hand."""
        return None if self.data is None else self.image().size

    @property
    def transparent(self) -> bool | None:
        """Tell whether some of the picture is so transparent that a mask paints it; None while the data is missing."""
        if self.data is None:
            return None
        image = self.image()
        return image.mode == "RGBA" and any(image.getchannel("A").histogram()[: 256 - PAINTED])

    def image(self) -> Image.Image:
        """Decode the picture, upright, as RGB or RGBA of eight bits.

        Raises ReverieError where its file is gone, or is not the file it was.
        """
        return decode(self.data or self._found(), f"'{self.path}'" if self.path else None)

    def _found(self) -> bytes:
        if self.path is None:
            raise ReverieError(f"a picture given in memory is gone (its SHA-256: {self.sha256}); give it again")
        data = _read(Path(self.path))
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ReverieError(f"'{self.path}' has changed since (its SHA-256 was {self.sha256}); give the old picture")
        return data


def _known(data: bytes, path: str | None) -> dict[str, object]:
    """Check that `data` opens as a picture, and name it by its sum."""
    sha256 = hashlib.sha256(data).hexdigest()
    Picture.model_construct(sha256=sha256, path=path, data=data).image()
    return {"sha256": sha256, "path": path, "data": data}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReverieError(f"cannot read '{path}': {reason_of(error)}") from error


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image = upright(image)
    (image if image.mode in PNG_MODES else eight_bits(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _from_data_url(url: str) -> bytes:
    _, comma, text = url.partition(";base64,")
    try:
        if not comma:
            raise ValueError("no ';base64,'")
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ReverieError(f"'{url[:32]}...' is no picture: {error}; write data:image/png;base64,...") from error
