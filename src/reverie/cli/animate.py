"""`reverie animate`: the film that prompts, keyframes or a storyboard ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.flags import AdapterFlags, FrameFlags, PathFlags, SourceFlags
from reverie.cli.options import FileOptions, Json, ModelOptions


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FilmFileOptions:
    """Choose where the film goes and how it is reported."""

    output: Annotated[tuple[Path, ...], Parameter(("--output", "-o"), negative=(), show_default=False)] = ()
    """Film (.mp4, .webm, .gif, .webp), contact sheet (.png, .jpg) or folder for frames; several times for several."""
    as_json: Json = False
    """Print one JSON object with files, frames, times and timings."""


def animate(
    *prompts: str,
    path: PathFlags = PathFlags(),
    drawing: FrameFlags = FrameFlags(),
    adapters: AdapterFlags = AdapterFlags(),
    source: SourceFlags = SourceFlags(),
    model: ModelOptions = ModelOptions(),
    film: FilmFileOptions = FilmFileOptions(),
    files: FileOptions = FileOptions(),
) -> None:
    """Make a film from prompt to prompt. Broken off, it goes on where it was when the same command is given again.

    Parameters
    ----------
    prompts
        What to show, one after the other: two or more, or one with | between them.
    """
    from reverie.cli.ask import ask_film
    from reverie.cli.jobs import carry_out
    from reverie.jobs.films import FilmJob
    from reverie.jobs.outputs import slug

    request = ask_film(prompts, path, drawing, adapters, source)
    shown = [keyframe.prompt for keyframe in request.keyframes if keyframe.prompt]
    outputs = film.output or (Path(f"{slug(' '.join(shown))}-{request.seed}.mp4"),)
    job = FilmJob(request=request, outputs=outputs, model=model.model, **vars(files))
    carry_out(job, model, film.as_json)
