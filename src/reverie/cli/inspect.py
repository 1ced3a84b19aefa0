"""`reverie inspect`: what is a file: a model or what goes beside one, a picture, a film or music?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reverie.cli.options import Json
from reverie.cli.output import say
from reverie.errors import ReverieError
from reverie.media.pictures import FORMATS


def inspect(path: Path, /, *, as_json: Json = False) -> None:
    """Tell what a file or folder of weights is, or how a picture, a film or music was made.

    Parameters
    ----------
    path
        A file of weights, a folder of a model or a CLIP, a picture, a film (a file or a folder of frames) or a sound.
    as_json
        Print one JSON object.
    """
    told = _found(path)
    if as_json:
        say(json.dumps(told, ensure_ascii=False))
        return
    for key, value in told.items():
        if value not in (None, "", [], ()):
            say(f"{key}: {_line(key, value)}")


def _found(path: Path) -> dict[str, Any]:
    from reverie.media.footage import ANIMATED, FILMS
    from reverie.media.pictures import READABLE
    from reverie.requests.films import Animation
    from reverie.requests.music import Music
    from reverie.requests.records import recorded_kind
    from reverie.requests.texts import SOUNDS

    suffix = path.suffix.lower()
    made = path.is_dir() or suffix in (*READABLE, *ANIMATED, *FILMS, *SOUNDS)
    kind = recorded_kind(path) if made else None
    if kind == Music.kind or suffix in SOUNDS:
        return {"path": str(path), "kind": "music", **_record(path)}
    if kind == Animation.kind or suffix in FILMS or (suffix in ANIMATED and suffix not in FORMATS):
        return _film(path)
    return _picture(path) if suffix in READABLE else _weights(path)


def _record(path: Path) -> dict[str, Any]:
    """Tell how a file was made, or that it does not say so."""
    from reverie.requests.records import read_record

    try:
        record = read_record(path)
    except ReverieError as error:
        return {"model": None, "not_honoured": [str(error)], "request": None}
    film = {} if record.film is None else {"film": record.film.recorded()}
    return {"model": record.model, "not_honoured": list(record.notes), "request": record.request.recorded(), **film}


def _film(path: Path) -> dict[str, Any]:
    from reverie.media import footage

    film = footage.read(path)
    size = {"width": film.size[0], "height": film.size[1]}
    rate = {"frames": film.count, "fps": None if film.count == 1 else film.fps}  # a contact sheet has no rate
    return {"path": str(path), "kind": "film", **size, **rate, **_record(path)}


def _picture(path: Path) -> dict[str, Any]:
    from reverie.media.pictures import SPECTROGRAM, open_picture

    picture = open_picture(path)
    kind = "spectrogram" if any(tag in SPECTROGRAM for tag in picture.getexif()) else "picture"
    return {"path": str(path), "kind": kind, "width": picture.width, "height": picture.height, **_record(path)}


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
