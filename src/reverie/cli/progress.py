"""How far long work and downloads are, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from reverie.cli.options import ModelOptions
from reverie.progress import Progress

if TYPE_CHECKING:
    from reverie.checkpoints.hub import Download, Report

Event = TypeVar("Event")
PLAIN_INTERVAL = 5.0  # seconds between two lines of a log


def show_progress(events: Iterable[Event]) -> Iterator[Event]:
    """Pass events through and show on stderr how far they are, how fast they come and how long the rest will take.

    Events that are no `Progress` are passed on alone.
    """
    return _bar(events) if sys.stderr.isatty() else _lines(events)


def _bar(events: Iterable[Event]) -> Iterator[Event]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[details]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, details="", visible=False)
        unit = None
        for event in events:
            if isinstance(event, Progress):
                if event.unit != unit:
                    unit = event.unit
                    bar.reset(task, description=unit, visible=True)
                bar.update(task, completed=event.done, total=event.total, details=event.details)
            yield event


def _lines(events: Iterable[Event]) -> Iterator[Event]:
    last, unit = time.monotonic(), None
    first = 0.0, 0  # what came before it, such as loading, tells nothing of the rest
    for event in events:
        yield event
        if not isinstance(event, Progress):
            continue
        now, (done, total) = time.monotonic(), (event.done, event.total)
        if event.unit != unit:
            unit, first = event.unit, (now, done)
        rate = (done - first[1]) / max(now - first[0], 1e-9)
        if event.details or (rate and now - last >= PLAIN_INTERVAL and done < total):
            last = now
            rest = f"{rate:.2f}/s, {(total - done) / rate:.0f} s left" if rate else ""
            print(*filter(None, (f"{unit} {done}/{total},", event.details, rest)), file=sys.stderr, flush=True)


class Rate(ProgressColumn):
    """Show how many events come in a second."""

    def render(self, task: Task) -> Text:
        """Write the rate, or a dash while it is unknown."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def fetch(model: ModelOptions) -> None:
    """Fetch a model that is a name on the hub and not in its cache; others are left to loading. Raises ReverieError."""
    if model.model is None or Path(model.model).exists():
        return
    from reverie.checkpoints import hub  # brings torch, which takes seconds

    if hub.is_name(model.model):
        with _show(model.model) as report:
            hub.find(model.model, revision=model.revision, variant=model.variant, report=report)


@contextmanager
def _show(name: str) -> Iterator[Report]:
    """Yield what a download is to be reported to."""
    if not sys.stderr.isatty():
        yield _DownloadLines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(compact=True), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"fetching {name}", total=None, visible=False)

        def report(download: Download) -> None:
            bar.update(task, completed=download.done, total=download.total, visible=True)

        yield report


class _DownloadLines:
    """Write a line to stderr when a download begins, and another every few seconds."""

    def __init__(self, name: str):
        self._name = name
        self._last = 0.0

    def __call__(self, download: Download) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL:
            self._last = now
            done, total = download.done / 1e6, download.total / 1e6
            print(f"fetching {self._name}: {download.file}, {done:.0f} of {total:.0f} MB", file=sys.stderr)
