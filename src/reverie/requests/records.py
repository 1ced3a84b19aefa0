"""Records of files: the request that made a picture, a film or a sound, ours or another program's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from reverie.errors import ReverieError
from reverie.requests.base import SampledRequest
from reverie.requests.foreign import read_draft
from reverie.requests.foreign.draft import json_object
from reverie.requests.metadata import Record, read_own
from reverie.requests.music import Music
from reverie.requests.references import looking_in
from reverie.requests.texts import Carrier, read_carrier


def read_record(file: Image.Image | str | Path) -> Record:
    """Return what a picture, film, sound, folder of frames, or an image with its `.info` says of how it was made.

    Raises ReverieError where there is no such file, it says nothing, that is damaged, or what decides the picture
    cannot be honoured.
    """
    carrier = read_carrier(file)
    folders = () if isinstance(file, Image.Image) else (Path(file).absolute().parent,)
    if (own := read_own(carrier.texts, *folders)) is not None:
        return own if isinstance(file, Image.Image) else replace(own, request=_beside(own.request, Path(file)))
    named = "this picture" if isinstance(file, Image.Image) else f"'{file}'"
    try:
        with looking_in(*folders):
            record = _read_foreign(carrier)
    except ReverieError as error:
        raise ReverieError(f"{named}: {error}", field=error.field) from error
    if record is None:
        raise ReverieError(f"{named} {_silence(carrier)}")
    return record


def _silence(carrier: Carrier) -> str:
    """Say why a file's texts are no settings."""
    if '"nodes"' in carrier.texts.get("workflow", ""):
        return "holds the workflow of ComfyUI's editor without what was drawn by it; open it there, and save it anew"
    for name, text in carrier.texts.items():
        if data := json_object(text):
            return f"says in '{name}' what no program that is known here writes (it holds {', '.join(list(data)[:4])})"
    return "does not say how it was made; give one that still has its metadata"


def _read_foreign(carrier: Carrier) -> Record | None:
    if (draft := read_draft(carrier)) is None:
        return None
    picture = draft.request(carrier.size)
    if carrier.kind == "sound":
        return Record(
            Music.of({"prompt": picture.prompt, **picture.sampling_fields()}), draft.model, tuple(draft.notes)
        )
    if carrier.kind == "film":
        draft.note("a film: here one picture of its settings is drawn")
    return Record(picture, draft.model, tuple(draft.notes))


def _beside(request: SampledRequest, file: Path) -> SampledRequest:
    """Let the adapters of a record be looked for beside the file that carries it."""
    return request.replace(folders=(str(file.absolute().parent),)) if request.sums else request


def from_metadata(file: Image.Image | str | Path) -> SampledRequest:
    """Return the request that made a picture, a film or a sound: a file, or an image with its `.info`."""
    return read_record(file).request
