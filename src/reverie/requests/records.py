"""How a picture, a film or a sound says which request made it: our JSON, or what another program left in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from reverie.animation.request import Animation
from reverie.errors import ReverieError
from reverie.generate.recorded import Request
from reverie.generate.requests import KINDS, TextToImage
from reverie.music.request import Film, Music
from reverie.requests.foreign import read_draft
from reverie.requests.texts import REQUEST, Carrier, read_carrier

ALL: dict[str, type[Request]] = {**KINDS, Animation.kind: Animation, Music.kind: Music}


class Record(NamedTuple):
    """What a file says of how it was made.

    The request; the name of the model; a line for everything that cannot be honoured, of files of other programs; and
    of a film to music how it was drawn.
    """

    request: Request
    model: str
    notes: tuple[str, ...] = ()
    film: Film | None = None


def read_record(file: Image.Image | str | Path) -> Record:
    """Read how a picture, film, sound or folder of frames was made, by reverie or by another program.

    Raises ReverieError where there is no such file, it says nothing of how it was made, or it cannot be honoured.
    """
    carrier = read_carrier(file)
    named = "this picture" if isinstance(file, Image.Image) else f"'{file}'"
    if text := carrier.texts.get(REQUEST):
        return _ours(text, named)
    try:
        return _theirs(carrier)
    except ReverieError as error:
        raise ReverieError(f"{named}: {error}") from error


def _ours(text: str, named: str) -> Record:
    try:
        data = json.loads(text)
        kind, model, fields, film = data["kind"], str(data["model"]), data["request"], data.get("film")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReverieError(f"the '{REQUEST}' text of {named} is damaged: {error!r}") from error
    if kind not in ALL or not isinstance(fields, dict):
        raise ReverieError(f"{named} was made by a request of kind {kind!r}; this version knows {', '.join(ALL)}")
    return Record(ALL[kind].of(fields), model, film=None if film is None else Film.of(film))


def _theirs(carrier: Carrier) -> Record:
    draft = read_draft(carrier)
    request: Request = draft.request(carrier.size)
    if carrier.kind == "film":
        draft.note("a film: here one picture of its settings is drawn")
    elif isinstance(request, TextToImage) and carrier.kind == "sound":
        request = Music.of({"prompt": request.prompt, **request.shared()})
    return Record(request, draft.model, tuple(draft.notes))


def recorded_kind(file: Image.Image | str | Path) -> str | None:
    """Return the kind of the request of ours that a file carries, without reading it further; None where it has none."""
    try:
        data: Any = json.loads(read_carrier(file).texts[REQUEST])
        return str(data["kind"])
    except (ReverieError, ValueError, KeyError, TypeError):
        return None


def own_record(request: Request, model: str, **more: object) -> dict[str, Any]:
    """Return what is written of a request into the files that it makes."""
    return {"kind": request.kind, "model": model, "request": request.recorded(), **more}
