"""Records of files: the request that made a picture, a film or a sound, ours or another program's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import read_texts
from reverie.requests.base import SampledRequest
from reverie.requests.foreign import read_foreign
from reverie.requests.metadata import Record, read_own

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")  # as media.sound has them, which brings torch; a test compares them


def read_record(file: Image.Image | str | Path) -> Record:
    """Return what a picture, a film, a sound, or an image with its `.info` says of how it was made.

    Raises ReverieError where it says nothing, or that is damaged.
    """
    folders = () if isinstance(file, Image.Image) else (Path(file).absolute().parent,)
    own = read_own(_texts(file), *folders)
    if own is not None:
        return own if isinstance(file, Image.Image) else replace(own, request=_beside(own.request, Path(file)))
    if not isinstance(file, Image.Image) and Path(file).suffix.lower() in SOUNDS:
        raise ReverieError(f"'{file}' holds no request of reverie's; give a sound that `reverie music` wrote")
    reading = read_foreign(file)
    return Record(reading.request, reading.model, reading.not_honoured)


def _beside(request: SampledRequest, file: Path) -> SampledRequest:
    """Let the adapters of a record be looked for beside the file that carries it."""
    return request.replace(folders=(str(file.absolute().parent),)) if request.sums else request


def from_metadata(file: Image.Image | str | Path) -> SampledRequest:
    """Return the request that made a picture, a film or a sound: a file, or an image with its `.info`."""
    return read_record(file).request


def _texts(file: Image.Image | str | Path) -> dict[str, str]:
    if isinstance(file, Image.Image):
        return read_texts(file)
    if Path(file).suffix.lower() in SOUNDS:
        from reverie.media import sound  # brings torch, which takes seconds

        return sound.read_texts(file)
    from reverie.media import footage  # brings numpy

    return footage.carried(file)
