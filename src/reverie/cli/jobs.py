"""Carry out a job on the command line: its progress and notes on stderr, and what was made on stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from reverie.cli.options import ModelOptions, say
from reverie.cli.progress import fetch, show_progress
from reverie.errors import ReverieError
from reverie.jobs.batches import BatchJob, FolderJob
from reverie.jobs.events import Event, Finished, Job, Note, Preview, Saved
from reverie.jobs.films import FilmJob
from reverie.media.pictures import save
from reverie.progress import Progress

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline


def carry_out(job: Job, model: ModelOptions, as_json: bool, preview: Path | None = None) -> None:
    """Check the job, load the model, show what happens, and report; `preview` is written over by previews."""
    job.check()
    saved: list[Path] = []
    done, finished = 0, Finished({})
    try:
        for event in show_progress(job.run(partial(load, model, job.model), show)):
            show(event)
            if isinstance(event, Preview) and preview is not None:
                save(event.picture, preview)
            elif isinstance(event, Saved):
                saved.append(event.path)
            elif isinstance(event, Progress):
                done = event.done
            elif isinstance(event, Finished):
                finished = event
    except KeyboardInterrupt:
        if isinstance(job, FilmJob):
            show(Note(f"stopped after frame {done}; the same command goes on from there"))
        elif saved:
            last = f" to '{saved[-1]}'" if len(saved) > 1 else ""
            show(Note(f"stopped; what is finished is kept: '{saved[0]}'{last}"))
        if saved and isinstance(job, BatchJob | FolderJob):
            show(Note(f"the same command with --seed {job.seed} goes on from there"))
        raise
    report(finished, as_json)


def report(finished: Finished, as_json: bool) -> None:
    """Write what was made to stdout. Raises ReverieError, at the end, where some of it could not be."""
    if as_json:
        say(json.dumps(finished.record, ensure_ascii=False))
    else:
        for file in finished.record["files"]:
            say(file)
        show(Note(finished.summary))
    if failed := finished.record.get("failed"):
        raise ReverieError(f"left out, the others are drawn: {', '.join(failed)}")


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
