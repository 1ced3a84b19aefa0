"""`reverie inspect`: what a file is: a model or what goes beside one, a picture, a film or music."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reverie.cli.options import Json
from reverie.cli.output import say
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
    from reverie.requests.film_records import is_film
    from reverie.requests.music_records import is_music

    if is_music(path):
        return _music(path)
    suffix = path.suffix.lower()
    if is_film(path) or suffix in FILMS or (suffix in ANIMATED and suffix not in FORMATS):
        return _film(path)
    return _picture(path) if suffix in FORMATS else _weights(path)


def _music(path: Path) -> dict[str, Any]:
    from reverie.requests import music_records as metadata

    carried = metadata.read(path)
    told = {"path": str(path), "kind": "music", "model": carried.model, "request": carried.music.recorded()}
    return told | {"film": None if carried.film is None else carried.film.recorded()}


def _film(path: Path) -> dict[str, Any]:
    from reverie.media import footage
    from reverie.requests import film_records as metadata

    film = footage.read(path)
    told = {"path": str(path), "kind": "film", "width": film.size[0], "height": film.size[1]}
    told |= {"frames": film.count, "fps": None if film.count == 1 else film.fps}  # a contact sheet has no rate
    request, model = metadata.read(path) if metadata.is_film(path) else (None, None)
    return told | {"model": model, "request": None if request is None else request.recorded()}


def _weights(path: Path) -> dict[str, Any]:
    from reverie.checkpoints.description import describe  # brings torch, which takes seconds

    return asdict(describe(path))


def _picture(path: Path) -> dict[str, Any]:
    from reverie.media.pictures import REQUEST, open_picture, read_texts
    from reverie.requests.foreign import read_foreign
    from reverie.requests.records import read_metadata

    picture = open_picture(path)
    if REQUEST in read_texts(picture):
        request, model = read_metadata(picture)
        missed: tuple[str, ...] = ()
    else:
        request, model, missed = read_foreign(picture)
    size = {"width": picture.width, "height": picture.height}
    return {"path": str(path), "kind": "picture", **size, "model": model, "not_honoured": list(missed)} | {
        "request": request.model_dump(mode="json")
    }


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
