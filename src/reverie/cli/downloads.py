"""Models fetched from the hub before they are loaded, with progress on stderr: a bar or lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from reverie.cli.options import ModelOptions
from reverie.cli.progress import PLAIN_INTERVAL

if TYPE_CHECKING:
    from reverie.checkpoints.hub import Download, Report


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
        yield _Lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(compact=True), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"fetching {name}", total=None, visible=False)

        def report(download: Download) -> None:
            bar.update(task, completed=download.done, total=download.total, visible=True)

        yield report


class _Lines:
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
