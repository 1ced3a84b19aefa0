"""Replay: the job that makes a file again from the request that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.files import name_of
from reverie.jobs.events import Job, Note, not_honoured
from reverie.jobs.films import FilmJob
from reverie.jobs.music import MusicJob
from reverie.jobs.pictures import PictureJob
from reverie.requests.base import SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.parts import UPSCALER_NAMES
from reverie.requests.pictures import TextToImage
from reverie.requests.records import read_record
from reverie.requests.references import BUNDLED, MODEL_FOLDERS, FileReference, plain_name, references


def replay_job(
    file: Path, changes: Mapping[str, Any], *, output: Path | None = None, model: str | None = None, **finishing: Any
) -> tuple[Job, list[Note]]:
    """Return the job that makes a picture, film or sound again, and what cannot be honoured of its request.

    `changes` are fields that go before the file's, such as where its `init` is now. `finishing` are further fields of
    a `PictureJob`, for pictures alone. Raises ReverieError where the file holds no request, was made by a model that
    is neither bundled nor given, with one that is not here, or without what is changed.
    """
    record = read_record(file)
    notes = list(not_honoured(record.notes))
    request, drawn_by, film = record.request, record.model, record.film
    kind = {Music: "music", Animation: "a film"}.get(type(request), "a picture")
    request, others = _change(file, request, changes)
    notes += [Note(f"not honoured: {other}") for other in others]
    if not isinstance(request, TextToImage):
        for name, value in finishing.items():
            if value not in (None, False, 0) and name not in ("no_clobber", "metadata", "device"):
                raise ReverieError(f"`{name.replace('previews', 'preview')}` is about pictures; '{file}' is {kind}")
    model = _find_model(file, request, drawn_by, model)
    _check_models(file, request, film)
    suffix = ".png" if isinstance(request, TextToImage) else file.suffix
    output = output or file.with_name(f"{file.stem}-replay{suffix}")
    shared: dict[str, Any] = {"request": request, "model": model, "drawn_by": drawn_by}
    if isinstance(request, TextToImage):
        # only a grid carries a request for several pictures
        grid = (request.count > 1 and "count" not in changes) or bool(finishing.get("grid"))
        return PictureJob(output=output, **shared, **finishing | {"grid": grid}), notes
    shared |= {name: finishing[name] for name in ("metadata", "no_clobber") if name in finishing}
    if isinstance(request, Animation):
        return FilmJob(outputs=(output,), **shared), notes
    if film is not None:
        return MusicJob(film=film, film_output=output, **shared), notes
    return MusicJob(outputs=(output,), **shared), notes


def _change(file: Path, request: SampledRequest, changes: Mapping[str, Any]) -> tuple[SampledRequest, tuple[str, ...]]:
    """Replace fields of a request; return it, and notes where a file to start from is another one.

    Raises ReverieError for a file to start from where it started from none, and for one that is missing.
    """
    files = {name: changes[name] for name in ("init", "mask") if name in changes}
    others = {name: value for name, value in changes.items() if name not in files}
    for name in others:
        if not hasattr(request, name):
            raise ReverieError(f"'{file}' was made without {name}; leave out `{name}`", field=name)
    try:
        return supply(request.replace(**others), files)
    except ReverieError as error:
        raise ReverieError(f"'{file}': {error}", field=error.field) from error


def supply(request: SampledRequest, files: Mapping[str, object]) -> tuple[SampledRequest, tuple[str, ...]]:
    """Put files in the place of those that a recorded request names; return it, and notes where one is another file.

    `init` is the film where a request draws over one. Raises ReverieError for a field that the request has not, and
    where a file that it needs is still missing.
    """
    named = {f"{name}_video" if hasattr(request, f"{name}_video") else name: file for name, file in files.items()}
    for name in named:
        if not isinstance(getattr(request, name, None), FileReference):
            given = name.removesuffix("_video")
            raise ReverieError(f"it was made without {given}", field=given, hint=f"leave out `{given}`")
    supplied, notes = request.replace(**named), list[str]()
    for name in named:
        old: FileReference = getattr(request, name)
        if getattr(supplied, name) != old:
            notes.append(f"{name} is another file than it was made from, '{old.name}' with SHA-256 {old.sha256}")
    for field, reference in references(supplied):
        if not reference.is_here:
            raise reference.missing(field)
    return supplied, tuple(notes)


def _find_model(file: Path, request: SampledRequest, drawn_by: str, model: str | None) -> str:
    """Return the model that is given, else the bundled one that made a file. Raises ReverieError where neither is."""
    if model is None and plain_name(drawn_by) not in BUNDLED:
        did = "played" if isinstance(request, Music) else "drawn"
        if not drawn_by:
            raise ReverieError(f"'{file}' does not say by which model it was {did}; give one as `model`")
        raise ReverieError(f"'{file}' was {did} by the model '{drawn_by}'; say where that is with `model`")
    return model or plain_name(drawn_by)


def _check_models(file: Path, request: SampledRequest, film: Film | None) -> None:
    """Raise ReverieError where a model is not here that a file was made with, beside the one that drew or played it."""
    names: list[str | None] = [film.model] if film is not None else []
    if isinstance(request, TextToImage):
        names += [control.model for control in request.controls]
        names += [name for adapter in request.ip_adapters for name in (adapter.model, adapter.encoder)]
        names += [request.refiner.model] if request.refiner is not None else []
        names += [request.hires.upscaler] if request.hires and request.hires.upscaler not in UPSCALER_NAMES else []
    for name in filter(None, names):
        if name == name_of(name) and name not in BUNDLED and not Path(name).exists():
            raise ReverieError(
                f"'{file}' was made with '{name}', which is not here; put it beside that file, or name its folder with "
                f"{MODEL_FOLDERS}"
            )
