"""`reverie inspect`: what a file is: a model or what goes beside one, a picture, a film or music."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reverie.cli.options import Json
from reverie.cli.output import say
from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.requests.records import Record


def inspect(path: Path, /, *, as_json: Json = False) -> None:
    """Tell what a file or folder of weights is, or how a picture, a film or music was made.

    Parameters
    ----------
    path
        A file of weights, a folder of a model or a CLIP, a picture, a film (a file or a folder of frames) or a sound.
    as_json
        Print one JSON object.
    """
    found = _describe(path)
    if as_json:
        say(json.dumps(found, ensure_ascii=False))
        return
    for key, value in found.items():
        if value not in (None, "", [], ()):
            say(f"{key}: {_line(key, value)}")


def _describe(path: Path) -> dict[str, Any]:
    from reverie.media.footage import ANIMATED, FILMS
    from reverie.media.pictures import FORMATS, READABLE
    from reverie.requests.films import Animation
    from reverie.requests.music import Music
    from reverie.requests.records import read_record
    from reverie.requests.texts import SOUNDS

    suffix, missing = path.suffix.lower(), None
    try:
        record = read_record(path)
    except ReverieError as error:
        record, missing = None, error
    if record is not None and isinstance(record.request, Music):
        return {"path": str(path), "kind": "music", **_describe_record(record)}
    if suffix in FILMS or suffix in ANIMATED - FORMATS.keys() or (record and isinstance(record.request, Animation)):
        return _film(path, record)
    if suffix not in READABLE and suffix not in SOUNDS:
        return _weights(path)
    if missing is not None and suffix in SOUNDS:
        raise missing
    return _picture(path, record, missing)


def _picture(path: Path, record: Record | None, missing: ReverieError | None) -> dict[str, Any]:
    from reverie.media.pictures import SPECTROGRAM, open_picture

    picture = open_picture(path)
    kind = "spectrogram" if any(tag in SPECTROGRAM for tag in picture.getexif()) else "picture"
    size = {"width": picture.width, "height": picture.height}
    why = {} if missing is None else {"not_honoured": [str(missing)]}
    return {"path": str(path), "kind": kind, **size, **_describe_record(record), **why}


def _describe_record(record: Record | None) -> dict[str, Any]:
    """Tell how something was made."""
    if record is None:
        return {"model": None, "request": None}
    fields = {"model": record.model, "not_honoured": list(record.notes), "request": record.request.to_record()}
    return fields | ({} if record.film is None else {"film": record.film.to_record()})


def _film(path: Path, record: Record | None) -> dict[str, Any]:
    from reverie.media import footage

    film = footage.read(path)
    fields = {"path": str(path), "kind": "film", "width": film.size[0], "height": film.size[1]}
    fields |= {"frames": film.count, "fps": None if film.count == 1 else film.fps}  # a contact sheet has no rate
    return fields | _describe_record(record)


def _weights(path: Path) -> dict[str, Any]:
    from reverie.checkpoints.description import describe  # brings torch, which takes seconds

    return asdict(describe(path))


def _line(key: str, value: Any) -> str:
    """Write a value for people."""
    if key == "size":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    if key == "resolution":
        return f"{value} px"
    if isinstance(value, dict):
        return json.dumps({k: v for k, v in value.items() if v not in (None, [], ())}, ensure_ascii=False)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and key in ("parameters", "tensors") else str(value)
