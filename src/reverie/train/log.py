"""Logs of a run: JSON lines, and tensorboard's files where it is installed."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from reverie.files import write_text
from reverie.progress import Progress
from reverie.train.parallel import average

LINES = "log.jsonl"


@dataclass(frozen=True)
class TrainingStep(Progress):
    """A logged step: metrics are means since the last one, `rate` is in steps a second."""

    metrics: dict[str, float]
    rate: float
    seconds_left: float

    @property
    def step(self) -> int:
        """Return how many steps are done."""
        return self.done

    @property
    def details(self) -> str:
        """Return the metrics."""
        return " ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())


class Meter:
    """Average metrics and measure the rate from one event to the next."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.restart()

    def restart(self) -> None:
        """Begin a new interval now."""
        self.sums: dict[str, list[float]] = {}
        self.counted, self.since = 0, time.monotonic()

    def add(self, metrics: list[tuple[str, float]]) -> None:
        """Count one step with its metrics; a name may come several times."""
        self.counted += 1
        for name, value in metrics:
            self.sums.setdefault(name, []).append(value)

    def event(self, step: int, rate: float, measured: dict[str, float]) -> TrainingStep:
        """Sum up the interval that ends with `step`, taken at learning rate `rate`; `measured` holds for its end.

        Of several processes all must ask for it: the metrics are their means.
        """
        seconds = (time.monotonic() - self.since) / self.counted
        means = average({name: sum(values) / len(values) for name, values in self.sums.items()})
        means |= measured | {"lr": rate}
        return TrainingStep(step, self.total, "steps", means, 1 / seconds, (self.total - step) * seconds)


class Log:
    """Write the events and contact sheets of a run into its folder; what came after step `start` is written anew.

    Without the `train` extra there is no tensorboard, and only the JSON lines are written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.path, self.samples = folder / LINES, folder / "samples"
        _drop_after(self.path, start)
        self._board = None
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def event(self, event: TrainingStep) -> None:
        """Add an event."""
        with self.path.open("a", encoding="utf-8") as lines:
            record = {"step": event.done, "total": event.total, "metrics": event.metrics}
            record |= {"rate": event.rate, "seconds_left": event.seconds_left}
            lines.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in (event.metrics | {"rate": event.rate}).items():
                self._board.add_scalar(name, value, event.step)

    def sheet(self, sheet: Image.Image, step: int) -> None:
        """Add a contact sheet."""
        self.samples.mkdir(exist_ok=True)
        sheet.save(self.samples / f"{step:06d}.png")
        if self._board is not None:
            self._board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")


class Silent:
    """Stand for the log in a process that leaves writing to the first."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def event(self, event: TrainingStep) -> None:
        """Write nothing."""

    def sheet(self, sheet: Image.Image, step: int) -> None:
        """Write nothing."""


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines that follow a step, and one that a kill left unfinished; a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    write_text(path, "".join(kept))
