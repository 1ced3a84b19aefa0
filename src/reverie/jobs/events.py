"""What a job reports while it works: progress, previews, notes, files that are written, and what was made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from reverie.progress import Progress

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Preview:
    """How the pictures at work look by now, side by side."""

    picture: Image.Image


@dataclass(frozen=True)
class Note:
    """A line for whoever waits: a warning, a choice that was made, or what is not honoured."""

    text: str


@dataclass(frozen=True)
class Saved:
    """A file that is finished."""

    path: Path


@dataclass(frozen=True)
class Finished:
    """The last event: what was made, as plain values for JSON: files, seeds, sizes, timings in seconds, the request.

    `summary` tells it in a line.
    """

    record: dict[str, Any]
    summary: str = ""


Event = Progress | Preview | Note | Saved | Finished
Load = Callable[[str | None], "Pipeline"]
"""Give the model of a name, a folder or a file; None is the bundled model of pictures."""


def seeds_text(seeds: Sequence[int]) -> str:
    """Name the seeds of what was made, in order, by the first and the last."""
    return f"seed {seeds[0]}" + (f" to {seeds[-1]}" if seeds[-1] != seeds[0] else "")


def ignore(event: Event) -> None:
    """Do nothing: nobody waits for it."""


class Job(Protocol):
    """A request with where its files go and how they are finished."""

    @property
    def model(self) -> str | None:
        """Name the model that it is for; None is the bundled one."""

    def check(self) -> None:
        """Raise ReverieError, before a model is loaded, for what cannot be."""

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Do it, and yield what happens; the last event is `Finished`. Closing the generator stops it.

        `tell` gets the notes of a step within which nothing can be yielded for long.
        """


@dataclass
class Stopwatch:
    """Collect how many seconds each part of the work took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part, less what is measured within it."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        yield
        within = sum(self.seconds.values()) - before
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start - within

    def summary(self) -> dict[str, float]:
        """Return the seconds of each part to the millisecond."""
        return {part: round(taken, 3) for part, taken in self.seconds.items()}


def not_honoured(lines: Iterable[str]) -> Iterator[Note]:
    """Yield a note for each thing that a request asks for and does not get."""
    return (Note(f"not honoured: {line}") for line in lines)


def model_notes(system: Pipeline, made_by: str | None = None) -> Iterator[Note]:
    """Note where a model is slow on this processor, and where it is not the one that made a file before."""
    from reverie.runtime import native

    if system.device.type == "cpu" and not native(system.dtype):
        kind = str(system.dtype).removeprefix("torch.")
        yield Note(f"this processor does not compute in {kind}: float32 is many times as fast")
    if made_by not in (None, system.name):
        yield from not_honoured([f"it was drawn by '{made_by}', this is '{system.name}'"])
