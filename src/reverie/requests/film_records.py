"""How does a film say which request made it? As JSON beside its title, in whatever kind of file, and back."""

from __future__ import annotations

import json
from pathlib import Path

from reverie.errors import ReverieError
from reverie.media.footage import carried
from reverie.media.pictures import REQUEST
from reverie.requests.films import Animation

TITLE = "title"
LONGEST_TITLE = 200  # characters


def texts(animation: Animation, model: str) -> dict[str, str]:
    """Return what the file of a film carries; `model` names what drew it."""
    shown = [keyframe.prompt or "a picture" for keyframe in animation.keyframes]
    ours = {"kind": animation.kind, "model": model, "request": animation.recorded()}
    return {REQUEST: json.dumps(ours), TITLE: " → ".join(shown)[:LONGEST_TITLE]}


def is_film(path: str | Path) -> bool:
    """Tell whether a file, or a folder of frames, carries the request of a film."""
    try:
        text = carried(path).get(REQUEST)
        return text is not None and json.loads(text)["kind"] == Animation.kind
    except (ReverieError, ValueError, KeyError, TypeError):
        return False


def read(path: str | Path) -> tuple[Animation, str]:
    """Return the request that made a film, and the name of its model.

    Raises ReverieError where the file does not hold one.
    """
    text = carried(path).get(REQUEST)
    if text is None:
        raise ReverieError(f"'{path}' holds no request of reverie's; give a film that `reverie animate` wrote")
    try:
        data = json.loads(text)
        model, request = str(data["model"]), data["request"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReverieError(f"the '{REQUEST}' text of '{path}' is damaged: {error!r}") from error
    if not isinstance(request, dict):
        raise ReverieError(f"the '{REQUEST}' text of '{path}' is damaged: it holds no request")
    return Animation.of(request), model
