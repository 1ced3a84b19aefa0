"""How a picture, a film or a sound was made: our JSON in it, or what another program left there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import REQUEST
from reverie.requests.films import Animation
from reverie.requests.foreign import read_draft
from reverie.requests.music import Film, Music
from reverie.requests.pictures import KINDS, TextToImage
from reverie.requests.recorded import Request
from reverie.requests.texts import Carrier, read_carrier

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
    carrier, named = read_carrier(file), _named(file)
    if text := carrier.texts.get(REQUEST):
        return _read_ours(text, named)
    try:
        return _read_theirs(carrier)
    except ReverieError as error:
        raise ReverieError(f"{named}: {error}") from error


def _named(file: Image.Image | str | Path) -> str:
    return "this picture" if isinstance(file, Image.Image) else f"'{file}'"


def _read_ours(text: str, named: str) -> Record:
    try:
        data = json.loads(text)
        kind, model, fields, film = data["kind"], str(data["model"]), data["request"], data.get("film")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReverieError(f"the '{REQUEST}' text of {named} is damaged: {error!r}") from error
    if kind not in ALL or not isinstance(fields, dict):
        raise ReverieError(f"{named} was made by a request of kind {kind!r}; this version knows {', '.join(ALL)}")
    return Record(ALL[kind].of(fields), model, film=None if film is None else Film.of(film))


def _read_theirs(carrier: Carrier) -> Record:
    draft = read_draft(carrier)
    request: Request = draft.request(carrier.size)
    if carrier.kind == "film":
        draft.note("a film: here one picture of its settings is drawn")
    elif isinstance(request, TextToImage) and carrier.kind == "sound":
        request = Music.of({"prompt": request.prompt, **request.shared()})
    return Record(request, draft.model, tuple(draft.notes))


def recorded_kind(file: Image.Image | str | Path) -> str | None:
    """Return the kind of the request of ours that a file carries; None where it has none, or cannot be read."""
    try:
        data: Any = json.loads(read_carrier(file).texts[REQUEST])
        return str(data["kind"])
    except (ReverieError, ValueError, KeyError, TypeError):
        return None


def from_metadata(file: Image.Image | str | Path) -> Any:
    """Return the request of ours that made a picture, a film or a sound: a file, or an image with its `.info`.

    Raises ReverieError where it carries none; `read_record` reads the files of other programs too.
    """
    if recorded_kind(file) is None and not read_carrier(file).texts.get(REQUEST):
        raise ReverieError(f"{_named(file)} holds no request of reverie's; give a file that reverie wrote")
    return read_record(file).request
