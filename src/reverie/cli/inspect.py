"""`reverie inspect`: what is a file: a model, a LoRA, an embedding, an autoencoder, a ControlNet, or a picture?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reverie.cli.options import Json
from reverie.cli.output import say
from reverie.codecs.pictures import FORMATS


def inspect(path: Path, /, *, as_json: Json = False) -> None:
    """Tell what a file or folder of weights is, or how a picture was made.

    Parameters
    ----------
    path
        A file of weights, a folder in diffusers' layout, or a picture.
    as_json
        Print one JSON object.
    """
    told = _picture(path) if path.suffix.lower() in FORMATS else _weights(path)
    if as_json:
        say(json.dumps(told, ensure_ascii=False))
        return
    for key, value in told.items():
        if value not in (None, "", [], ()):
            say(f"{key}: {_line(key, value)}")


def _weights(path: Path) -> dict[str, Any]:
    from reverie.checkpoints.description import describe  # brings torch, which takes seconds

    return asdict(describe(path))


def _picture(path: Path) -> dict[str, Any]:
    from reverie.codecs.pictures import REQUEST, open_picture, read_texts
    from reverie.generate.foreign import read_foreign
    from reverie.generate.metadata import read_metadata

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
