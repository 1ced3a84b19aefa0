"""How is a sound given to a request? As a file of sound or of a spectrogram's picture, or in memory; by its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field, model_validator

from reverie.errors import ReverieError
from reverie.files import file_sha256
from reverie.media.decoding import READABLE
from reverie.media.pictures import open_picture
from reverie.requests.base import Frozen

if TYPE_CHECKING:
    from reverie.media.sound import Sound


class Source(Frozen):
    """Name a sound that a request is about, or a picture of its spectrogram, by path and SHA-256.

    Where a request takes one, give a path, a `Sound` or a PIL image. JSON and metadata hold path and sum alone: what
    was given in memory must be given again. Raises ReverieError for what is neither sound nor picture.
    """

    sha256: str
    path: str | None = None
    held: Any = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _take(cls, given: Any) -> Any:
        if isinstance(given, cls | dict):
            return given
        if isinstance(given, str | Path):
            path = Path(given)
            return {"sha256": file_sha256(path), "path": str(path.absolute()), "held": _read(path)}
        if isinstance(given, Image.Image):
            return {"sha256": _sum(given.tobytes()), "held": given.copy()}
        from reverie.media.sound import Sound  # brings torch, which takes seconds

        if isinstance(given, Sound):
            return {"sha256": _sum(given.samples.cpu().numpy().tobytes()), "held": given}
        raise ReverieError(f"{type(given).__name__} is no sound; give a path, a Sound or a picture of a spectrogram")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def open(self) -> Sound | Image.Image:
        """Return the sound or the picture. Raises ReverieError where its file is gone, or is not the file it was."""
        if self.held is not None:
            return self.held
        if self.path is None:
            raise ReverieError(f"a sound given in memory is gone (its SHA-256: {self.sha256}); give it again")
        if file_sha256(Path(self.path)) != self.sha256:
            raise ReverieError(f"'{self.path}' has changed since (its SHA-256 was {self.sha256}); give the old file")
        return _read(Path(self.path))


def _read(path: Path) -> Sound | Image.Image:
    from reverie.media import sound

    return open_picture(path) if path.suffix.lower() in READABLE else sound.read(path)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
