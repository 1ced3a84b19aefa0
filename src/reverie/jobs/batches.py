"""Batches: requests for pictures drawn one after the other by one model, and all of them on one sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import check_distinct
from reverie.jobs.events import Event, Finished, Load, Note, Saved, ignore, seeds_text
from reverie.jobs.outputs import check_writable, numbered_paths
from reverie.jobs.pictures import PictureJob
from reverie.media.pictures import grid, open_picture, save
from reverie.progress import Progress
from reverie.requests.pictures import TextToImage
from reverie.requests.references import references


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Do several jobs for pictures with one model, and write what `lay_out` makes of all their pictures to `sheet`.

    Each picture carries its own request; the sheet, which shows several, carries none.
    """

    jobs: tuple[PictureJob, ...]
    sheet: Path | None = None
    lay_out: Callable[[list[Image.Image]], Image.Image] = grid

    @classmethod
    def of(cls, requests: Sequence[TextToImage], output: Path, options: Mapping[str, Any]) -> BatchJob:
        """Return the job for requests, with `options` of a `PictureJob`; `grid` asks for a sheet.

        Raises ReverieError for `best_of`, which compares pictures of one prompt.
        """
        if options["best_of"] is not None:
            raise ReverieError(
                "`best_of` compares pictures of one prompt; leave it out where prompts differ", field="best_of"
            )
        single = {**options, "grid": False}
        paths = zip(requests, numbered_paths(output, len(requests)), strict=True)
        jobs = tuple(PictureJob(request=request, output=path, **single) for request, path in paths)
        return cls(jobs=jobs, sheet=output if options["grid"] else None)

    @property
    def model(self) -> str | None:
        """Return the model of all of them."""
        return self.jobs[0].model

    @property
    def paths(self) -> list[Path]:
        """Return where the pictures go, and the sheet."""
        return [path for job in self.jobs for path in job.paths] + ([self.sheet] if self.sheet else [])

    def check(self) -> None:
        """Raise ReverieError, before a model is loaded, where a job does, or writes over what another reads."""
        for job in self.jobs:
            job.check()
        check_writable([self.sheet] if self.sheet else [])
        inputs = {Path(file.path) for job in self.jobs for _, file in references(job.request) if file.path}
        check_distinct(self.paths, inputs)

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Draw, and yield what happens; the last event is `Finished`."""
        self.check()
        return self._run(cache(load), tell)

    def _run(self, load: Load, tell: Callable[[Event], None]) -> Iterator[Event]:
        records: list[dict[str, Any]] = []
        noted: set[str] = set()
        for index, job in enumerate(self.jobs):
            for event in job.run(load, tell):
                if isinstance(event, Finished):
                    records.append(event.record)
                elif isinstance(event, Progress):
                    yield Progress(index * event.total + event.done, len(self.jobs) * event.total, event.unit)
                elif not isinstance(event, Note):
                    yield event
                elif event.text not in noted:  # what is said of one holds for most
                    noted.add(event.text)
                    yield event
        files = [file for record in records for file in record["files"]]
        if self.sheet is not None:
            save(self.lay_out([open_picture(path) for job in self.jobs for path in job.paths]), self.sheet)
            files.append(str(self.sheet))
            yield Saved(self.sheet)
        seeds = [seed for record in records for seed in record["seeds"]]
        timings = sum((Counter(record["timings"]) for record in records), Counter[str]())
        record = {
            "files": files,
            "seeds": seeds,
            "sizes": [size for record in records for size in record["sizes"]],
            "timings": {part: round(seconds, 3) for part, seconds in timings.items()},
            "requests": [record["request"] for record in records],
        }
        took = f"loaded in {timings['load']:.1f} s, drawn in {timings['draw']:.1f} s"
        yield Finished(record, f"{len(seeds)} pictures, {seeds_text(seeds)}; {took}")
