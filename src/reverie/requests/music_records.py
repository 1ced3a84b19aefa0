"""How does a sound file say which request made it? As JSON in its comment, beside its title, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.media.decoding import READABLE
from reverie.media.encoder import COMMENT
from reverie.media.pictures import REQUEST, open_picture, read_texts
from reverie.requests.music import Film, Music
from reverie.requests.recorded import Request

TITLE = "title"
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")  # as codecs.sound has them, which brings torch; a test compares them
LONGEST_TITLE = 100  # characters
NOTHING: tuple[object, ...] = (None, (), [], "")  # what a field holds where the request says nothing of it


def texts(music: Music, model: str, film: Film | None = None) -> dict[str, str]:
    """Return the tags that the file of a clip carries, or of the film to it; `model` names what played it.

    What the request leaves open is left out: a WAV file takes few bytes (codecs/sound.py). The JSON is ASCII, as
    libsndfile spoils other letters in an MP3's long texts.
    """
    ours = {"kind": music.kind, "model": model, "request": _said(music)}
    if film is not None:
        ours["film"] = _said(film)
    title = " → ".join([music.prompt, *(stop.prompt for stop in music.to)])[:LONGEST_TITLE]
    told = {COMMENT: json.dumps(ours, separators=(",", ":"))}
    return {TITLE: title, **told} if title else told


def _said(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.recorded().items() if value not in NOTHING}


@dataclass(frozen=True)
class Carried:
    """Hold what a file says of how it was made: the request, the model's name, and of a film how it was drawn."""

    music: Music
    model: str
    film: Film | None = None


def is_music(path: str | Path) -> bool:
    """Tell whether a file is a sound, or carries the request of one, as films to music and spectrograms do."""
    if Path(path).suffix.lower() in SOUNDS:
        return True
    try:
        return json.loads(_carried(Path(path)))["kind"] == Music.kind
    except (ReverieError, ValueError, KeyError, TypeError):
        return False


def read(path: str | Path) -> Carried:
    """Return the request that made a clip. Raises ReverieError where the file does not hold one."""
    text = _carried(Path(path))
    if not text:
        raise ReverieError(f"'{path}' holds no request of reverie's; give a sound that `reverie music` wrote")
    try:
        data = json.loads(text)
        model, request, film = str(data["model"]), dict(data["request"]), data.get("film")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReverieError(f"the '{COMMENT}' of '{path}' is damaged: {error!r}") from error
    return Carried(Music.of(request), model, None if film is None else Film.of(film))


def _carried(path: Path) -> str:
    """Return our JSON as a sound, a film or a picture of a spectrogram carries it."""
    if path.suffix.lower() in READABLE:
        return read_texts(open_picture(path)).get(REQUEST, "")
    from reverie.media import (
        footage,
        sound,  # brings torch, which takes seconds
    )

    if path.suffix.lower() in footage.FILMS:
        return footage.carried(path).get(REQUEST, "")
    return sound.read_texts(path).get(COMMENT, "")
