"""Carry out a job on the command line: its progress and notes on stderr, and what was made on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reverie.cli.options import ModelOptions
from reverie.cli.output import say
from reverie.cli.progress import fetch, show_progress
from reverie.jobs.events import Event, Finished, Job, Note, Preview, Saved
from reverie.jobs.films import FilmJob
from reverie.jobs.music import MusicJob
from reverie.jobs.outputs import check_outputs, check_writable
from reverie.jobs.pictures import PictureJob
from reverie.media.pictures import save
from reverie.progress import Progress
from reverie.requests.references import MUSIC_NAME

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline


def carry_out(job: Job, model: ModelOptions, as_json: bool, preview: Path | None = None) -> None:
    """Check where to write, load the model, show what happens, and report; `preview` is written over by previews."""
    own = model.model or (MUSIC_NAME if isinstance(job, MusicJob) else None)
    job.check()
    if preview is not None and isinstance(job, PictureJob):
        check_writable([preview])
        check_outputs([preview], job.request)
    saved: list[Path] = []
    done, record = 0, dict[str, Any]()
    try:
        for event in show_progress(job.run(partial(load, model, own), show)):
            show(event)
            if isinstance(event, Preview) and preview is not None:
                save(event.picture, preview)
            elif isinstance(event, Saved):
                saved.append(event.path)
            elif isinstance(event, Progress):
                done = event.done
            elif isinstance(event, Finished):
                record = event.record
    except KeyboardInterrupt:
        if isinstance(job, FilmJob):
            show(Note(f"stopped after frame {done}; the same command goes on from there"))
        elif saved:
            last = f" to '{saved[-1]}'" if len(saved) > 1 else ""
            show(Note(f"stopped; what is finished is kept: '{saved[0]}'{last}"))
        raise
    if as_json:
        say(json.dumps(record, ensure_ascii=False))
        return
    for file in record["files"]:
        say(file)
    show(Note(SUMMARIES[type(job)](record)))


def show(event: Event) -> None:
    """Write a note to stderr; other events are shown elsewhere."""
    if isinstance(event, Note):
        print(event.text, file=sys.stderr)


def load(model: ModelOptions, own: str | None, name: str | None) -> Pipeline:
    """Fetch a model where it is not there yet, and load it; what is said of the job's own holds for no other."""
    given = replace(model, model=name)
    if name != own:
        given = replace(given, config=None, prediction=None, revision=None, variant=None, vae=None, unet=None)
    fetch(given)
    import reverie  # brings torch, which takes seconds

    return reverie.load(given.model, **{field: value for field, value in vars(given).items() if field != "model"})


def _pictures(record: dict[str, Any]) -> str:
    timings = record["timings"]
    return f"{_seeds(record)}; loaded in {timings['load']:.1f} s, drawn in {timings['draw']:.1f} s"


def _film(record: dict[str, Any]) -> str:
    frames, timings = record["frames"], record["timings"]
    rate = frames / max(timings["draw"], 1e-9)
    took = f"loaded in {timings['load']:.1f} s, drawn in {timings['draw']:.1f} s ({rate:.1f} frames a second)"
    return f"{frames} frames, {record['seconds']:.1f} s, seed {record['seed']}; {took}"


def _music(record: dict[str, Any]) -> str:
    timings = record["timings"]
    took = f"loaded in {timings['load']:.1f} s, played in {timings['draw']:.1f} s"
    factor = f"({record['real_time_factor']:.2f} s of sound a second)"
    return f"{sum(record['seconds']):.2f} s, {_seeds(record)}; {took} {factor}"


def _seeds(record: dict[str, Any]) -> str:
    first, last = record["seeds"][0], record["seeds"][-1]
    return f"seed {first}" + (f" to {last}" if last != first else "")


SUMMARIES: dict[type, Callable[[dict[str, Any]], str]] = {PictureJob: _pictures, FilmJob: _film, MusicJob: _music}
