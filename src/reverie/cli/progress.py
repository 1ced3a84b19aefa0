"""How does long work show how far it is, and what took long? On stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Event = TypeVar("Event")
PLAIN_INTERVAL = 5.0  # seconds between two lines of a log


class TrainingEvent(Protocol):
    """What training tells after some steps; `rate` is in steps a second."""

    @property
    def step(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def rate(self) -> float: ...
    @property
    def seconds_left(self) -> float: ...


def watched(events: Iterable[Event], position: Callable[[Event], tuple[int, int]], label: str) -> Iterator[Event]:
    """Pass events through and show on stderr how far they are, how fast they come and how long the rest will take.

    `position` says of an event how many are done, and of how many. What events note is said there too.
    """
    events = _noted(events)
    return _bar(events, position, label) if sys.stderr.isatty() else _lines(events, position, label)


def _noted(events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        for note in getattr(event, "notes", ()):
            print(f"not honoured: {note}", file=sys.stderr)
        yield event


def _bar(events: Iterable[Event], position: Callable[[Event], tuple[int, int]], label: str) -> Iterator[Event]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        for event in events:
            done, total = position(event)
            bar.update(task, completed=done, total=total)
            yield event


def _lines(events: Iterable[Event], position: Callable[[Event], tuple[int, int]], label: str) -> Iterator[Event]:
    last = time.monotonic()
    first: tuple[float, int] | None = None  # what came before it, such as loading, tells nothing of the rest
    for event in events:
        yield event
        done, total = position(event)
        now = time.monotonic()
        if first is None:
            first = now, done
        elif now - last >= PLAIN_INTERVAL and first[1] < done < total:
            last, rate = now, (done - first[1]) / (now - first[0])
            print(f"{label} {done}/{total}, {rate:.2f}/s, {(total - done) / rate:.0f} s left", file=sys.stderr)


class Rate(ProgressColumn):
    """Show how many events come in a second."""

    def render(self, task: Task) -> Text:
        """Write the rate, or a dash while it is unknown."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def metered(events: Iterable[TrainingEvent]) -> None:
    """Follow a training run to its end: one line on stderr, rewritten on a terminal, added to elsewhere."""
    on_terminal = sys.stderr.isatty()
    for event in events:
        metrics = " ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
        left = timedelta(seconds=round(event.seconds_left))
        line = f"step {event.step}/{event.total} {metrics} {event.rate:.2f}/s {left} left"
        if on_terminal:
            width = shutil.get_terminal_size().columns
            print(f"\r\033[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
    if on_terminal:
        print(file=sys.stderr)


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
