"""Batches: requests for pictures drawn one after the other, all of them on one sheet; grids over values of fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import check_distinct, name_of
from reverie.jobs.events import Event, Finished, Load, Note, Saved, Stopwatch, ignore, seeds_text
from reverie.jobs.outputs import check_writable, numbered_paths
from reverie.jobs.pictures import PictureJob, settle
from reverie.media.pictures import REQUEST, grid, open_picture, save
from reverie.progress import Progress
from reverie.requests.pictures import PictureMethods, TextToImage
from reverie.requests.records import texts
from reverie.requests.references import references

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline

MOST_AXES = 3
LISTED = ("seeds", "sizes", "files")  # what records list one of for each picture
SEARCH = "replace"  # the axis that is no field


@dataclass(frozen=True)
class Axes:
    """The values that fields take in a grid: those of the first along its columns, then its rows, then its blocks.

    The axis `replace` is no field: each of its values stands in the prompts where its first one does (A1111's Prompt
    S/R, scripts/xyz_grid.py). Raises ReverieError for more than three axes, for none, and for one without values.
    """

    values: Mapping[str, Sequence[object]]

    def __post_init__(self) -> None:
        if not 1 <= len(self.values) <= MOST_AXES:
            raise ReverieError(f"a grid of {len(self.values)} axes is not possible; give 1 to {MOST_AXES}")
        if empty := [name for name, values in self.values.items() if not values]:
            raise ReverieError(f"axis '{empty[0]}' has no values; give some, such as steps=10,20")

    def cells(self) -> list[dict[str, object]]:
        """Return what each picture has of each axis, row by row, block by block."""
        names = list(self.values)[::-1]
        return [dict(zip(names, cell, strict=True)) for cell in product(*(self.values[name] for name in names))]

    def put_words(self, cell: Mapping[str, object], request: TextToImage) -> TextToImage:
        """Return a request with a cell's words in place of the first ones in all its prompts.

        Raises ReverieError where none has those.
        """
        if SEARCH not in cell:
            return request
        words, others = str(self.values[SEARCH][0]), str(cell[SEARCH])
        if not words or not any(words in prompt for prompt in (*request.prompts, *request.negatives)):
            raise ReverieError(
                f"'{words}' is in no prompt; the first value of the axis {SEARCH} is what the others stand for"
            )
        return request.replace(
            prompt=request.prompt.replace(words, others),
            negative=request.negative.replace(words, others),
            regions=tuple(one.with_words(lambda text: text.replace(words, others)) for one in request.regions),
        )

    @property
    def names(self) -> list[list[str]]:
        """Return what is written beside the columns, the rows and the blocks."""
        given = [[_label(name, value) for value in values] for name, values in self.values.items()]
        return given + [[""]] * (MOST_AXES - len(given))

    def lay_out(self, pictures: Sequence[Image.Image]) -> Image.Image:
        """Lay the pictures of all cells, in order, out on one sheet with names beside them."""
        from reverie.media.charts import labelled_grid  # brings torch

        return labelled_grid(pictures, *self.names)


def _label(name: str, value: object) -> str:
    """Name a value; of a path its last part alone."""
    text = str(value)
    if name in (SEARCH, "prompt"):
        return text
    return f"{name.replace('_', ' ')} {text if ' ' in text else name_of(text)}".strip()


def compare(
    model: PictureMethods, request: TextToImage, axes: Mapping[str, Sequence[object]]
) -> tuple[Image.Image, list[Image.Image]]:
    """Draw a request with each value of up to three fields; return a sheet of all with names, and the pictures.

    The first field's values go along the columns, the second's along the rows, the third's over blocks; see `Axes`.
    """
    grid = Axes(axes)
    if "count" in axes:
        raise ReverieError("a grid draws one picture a cell; give an axis such as seed in place of count")
    pictures = []
    for cell in grid.cells():
        fields = {name: value for name, value in cell.items() if name != SEARCH}
        pictures += model.draw(grid.put_words(cell, request.replace(count=1, **fields)))
    return grid.lay_out(pictures), pictures


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Do several jobs for pictures with one model, and write what `lay_out` makes of all their pictures to `sheet`.

    Each picture carries its own request; the sheet, which shows several, carries none. A picture that is there already
    by the same request is not drawn again, so that a batch which was stopped goes on. `asked_seed` is the seed of what
    the jobs came from, where each may have another.
    """

    jobs: tuple[PictureJob, ...]
    sheet: Path | None = None
    lay_out: Callable[[list[Image.Image]], Image.Image] = grid
    asked_seed: int | None = None

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
        paths = numbered_paths(output, len(requests), alone=not options["grid"])
        jobs = tuple(
            PictureJob(request=request, output=path, **single) for request, path in zip(requests, paths, strict=True)
        )
        return cls(jobs=jobs, sheet=output if options["grid"] else None)

    @property
    def model(self) -> str | None:
        """Return the model of the first."""
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

    @property
    def seed(self) -> int:
        """Return the seed that was asked for: where that is not said, the first's."""
        return self.jobs[0].request.seed if self.asked_seed is None else self.asked_seed

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Draw, and yield what happens; the last event is `Finished`."""
        self.check()
        return self._run(_Series(len(self.jobs), _one_at_a_time(load), tell))

    def _run(self, series: _Series) -> Iterator[Event]:
        for job in sorted(self.jobs, key=lambda job: job.model or ""):  # one model after the other
            yield from series.draw(job)
        files = []
        if self.sheet is not None:
            save(self.lay_out([open_picture(path) for job in self.jobs for path in job.paths]), self.sheet)
            files.append(str(self.sheet))
            yield Saved(self.sheet)
        yield series.finish(files=files)


@dataclass(frozen=True, kw_only=True)
class FolderJob:
    """Do for each of some files the job that `ask` makes of it, all with one model.

    A file of which no job can be made, or that cannot be drawn, is left out and named; what was drawn already by the
    same request is not drawn again. The record says of those that are left out why, by name, as `failed`.
    """

    files: Sequence[Path]
    ask: Callable[[Path], PictureJob]
    seed: int
    model: str | None = None

    def check(self) -> None:
        """Raise ReverieError where the job of the first picture that can be read does, and where none can be read."""
        for file in self.files:
            with suppress(ReverieError):
                open_picture(file)
                break
        else:
            raise ReverieError("no picture of the folder can be read; give a folder of PNG, JPEG or WebP files")
        self.ask(file).check()

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Draw, and yield what happens; the last event is `Finished`."""
        self.check()
        return self._run(_Series(len(self.files), cache(load), tell))

    def _run(self, series: _Series) -> Iterator[Event]:
        failed: dict[str, str] = {}
        watch = Stopwatch()
        with watch.measure("load"):  # outside of what may fail for one picture alone
            series.load(self.model)
        series.timings.update(watch.summary())
        for file in self.files:
            try:
                yield from series.draw(self.ask(file))
            except ReverieError as error:
                failed[file.name] = str(error)
                yield Note(f"left out: '{file.name}': {error}")
        if not series.records:
            raise ReverieError(f"no picture could be drawn: {next(iter(failed.values()))}")
        yield series.finish(failed=failed)


@dataclass
class _Series:
    """Jobs that are done one after the other, out of `count`: what they have made by now."""

    count: int
    load: Load
    tell: Callable[[Event], None]
    records: list[dict[str, Any]] = field(default_factory=list)
    timings: Counter[str] = field(default_factory=Counter)
    begun: int = 0
    done: int = 0
    noted: set[str] = field(default_factory=set)

    def draw(self, job: PictureJob) -> Iterator[Event]:
        """Do the next job; yield what happens but its end, with progress over all, and each note once."""
        before, left = self.done, self.count - self.begun
        self.begun += 1
        for event in _find(job, self.load) or job.run(self.load, self.tell):
            if isinstance(event, Finished):
                self.records.append(event.record)
                self.timings.update(event.record["timings"])
            elif isinstance(event, Progress):  # the rest is taken to be as long as this one
                self.done = before + event.done
                yield Progress(self.done, before + event.total * left, event.unit)
            elif not isinstance(event, Note):
                yield event
            elif event.text not in self.noted:  # what is said of one holds for most
                self.noted.add(event.text)
                yield event

    def finish(self, files: Sequence[str] = (), **further: object) -> Finished:
        """Return what was made by all jobs, with further files and fields of the record."""
        seeds, sizes, drawn = ([one for record in self.records for one in record[name]] for name in LISTED)
        record = {
            "files": [*drawn, *files],
            "seeds": seeds,
            "sizes": sizes,
            "timings": {part: round(seconds, 3) for part, seconds in self.timings.items()},
            "requests": [record["request"] for record in self.records],
            **further,
        }
        took = f"loaded in {self.timings['load']:.1f} s, drawn in {self.timings['draw']:.1f} s"
        return Finished(record, f"{len(seeds)} pictures, {seeds_text(seeds)}; {took}")


def _one_at_a_time(load: Load) -> Load:
    """Load as `load` does, and hold the last model alone: it is let go before another is loaded."""
    held: dict[str | None, Pipeline] = {}

    def get(name: str | None) -> Pipeline:
        if name not in held:
            held.clear()
            held[name] = load(name)
        return held[name]

    return get


def _find(job: PictureJob, load: Load) -> tuple[Event, ...]:
    """Return what a job would say whose picture is there already, by the same request; nothing where it is not."""
    others = (job.best_of, job.time_budget, job.safety, job.watermark, job.c2pa)  # of which pictures do not tell
    if job.request.count > 1 or job.explain or any(others) or not (job.metadata and job.output.is_file()):
        return ()
    try:
        picture = open_picture(job.output)
    except ReverieError:
        return ()
    if not (found := picture.info.get(REQUEST)):
        return ()
    system = load(job.model)
    request = settle(system, job.request)
    if found != texts(request, system.name)[REQUEST]:
        return ()
    record = {"files": [str(job.output)], "seeds": [job.request.seed], "sizes": [picture.size], "timings": {}}
    kept = Note("what is there already by the same request is not drawn again")
    return kept, Finished({**record, "request": request.to_record()})
