"""The learning-rate finder: a short run at growing rates, and the rate at which its loss falls fastest.

Source: Smith 1506.01186, section 3.3; smoothed and stopped as fastai's `lr_find`, chosen as Lightning's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from reverie.errors import ReverieError
from reverie.files import atomic_write, lock_folder, write_text
from reverie.progress import Progress
from reverie.runtime.transform import pick_device
from reverie.train import ip_adapter
from reverie.train.loop import Learner, RunSettings
from reverie.train.optimisers import Diverged
from reverie.train.parallel import process_count
from reverie.train.recipe import OBJECTIVES, check_apart, folder_of, read, section

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
SMOOTHING = 0.98  # share of the loss before in the smoothed one, fastai's
TOO_MUCH = 4.0  # times the lowest smoothed loss, at which the search ends
FEWEST = 10  # losses that say anything, and as many before them, which are smoothed over too few, as Lightning's
WIDTH, HEIGHT, EDGE = 640, 360, 40  # of the chart, in pixels


@dataclass(frozen=True)
class RateStep(Progress):
    """A step of the search, taken at a `rate`: its loss, and the loss smoothed over those before."""

    rate: float
    loss: float
    smoothed: float

    @property
    def details(self) -> str:
        """Return rate and loss."""
        return f"lr {self.rate:.2e} loss {self.smoothed:.4g}"


def search(path: Path, out: Path | None = None) -> Iterator[RateStep]:
    """Find the learning rate of a recipe: yield the steps, and write `rate.json` and `rate.png` into the run's folder.

    The run itself is not begun. Raises ReverieError where no rate is proposed, or can be.
    """
    sections, settings = read_recipe(path)
    check_apart(sections, folder := folder_of(path, out))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with lock_folder(folder, "training into"):
        module, _ = OBJECTIVES[sections["objective"]]
        objective = import_module(module).build(sections, settings.seed, folder)
        objective.move(pick_device(settings.device))
        steps = []
        for step in find_rate(Learner(objective, settings)):
            steps.append(step)
            yield step
        best: float | None = None
        try:
            best = suggest(steps)
        finally:
            _write(folder, steps, best)


def read_recipe(path: Path) -> tuple[dict[str, Any], RunSettings]:
    """Return a recipe's tables, and its settings.

    Raises ReverieError for Prodigy, which finds its own rate, for losses that are of another thing at first, and where
    torchrun started several processes.
    """
    sections = read(path)
    settings = section(sections, "run", RunSettings)
    if settings.optimiser == "prodigy":
        raise ReverieError("optimiser = 'prodigy' in [run] finds its own rate; leave lr = 1")
    if (seen := ip_adapter.settings_of(sections)) and seen.align:
        raise ReverieError("align in [ip_adapter] has a loss of its own, and a rate; leave it out while one is found")
    if process_count() > 1:
        raise ReverieError("the rate is found in one process; leave torchrun out")
    return sections, settings


def _write(folder: Path, steps: Sequence[RateStep], best: float | None) -> None:
    """Write what was found, as numbers and as a chart, also where it proposes nothing."""
    table = {"lr": best, "steps": [[step.rate, step.loss, step.smoothed] for step in steps]}
    write_text(folder / "rate.json", json.dumps(table, indent=1))
    if len(steps) > 1:
        with atomic_write(folder / "rate.png") as temporary:
            chart(steps, best).save(temporary, "PNG")


def find_rate(
    learner: Learner, lowest: float = LOWEST, highest: float = HIGHEST, count: int = STEPS
) -> Iterator[RateStep]:
    """Take `count` steps at rates that grow evenly in their logarithm; then the learner is as it was before.

    The loss is the first metric of the objective: an autoencoder's is L1. It ends early where the
    smoothed loss is TOO_MUCH times its lowest, or no number.
    """
    before, settings = deepcopy(learner.state_dict()), learner.settings
    mean, least = 0.0, math.inf
    try:
        for number in range(count):
            rate = lowest * (highest / lowest) ** (number / (count - 1))
            learner.settings = replace(settings, lr=rate, warmup=0, decay="constant")
            try:
                metrics = learner.step(number)
            except Diverged:
                return
            loss = fmean(value for name, value in metrics if name == metrics[0][0])  # of all parts of the batch
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smoothed = mean / (1 - SMOOTHING ** (number + 1))
            yield RateStep(number + 1, count, "steps", rate, loss, smoothed)
            if number >= FEWEST:
                least = min(least, smoothed)
            if smoothed > TOO_MUCH * least:
                return
    finally:
        learner.settings = settings
        learner.load_state_dict(before)


def suggest(steps: Sequence[RateStep]) -> float:
    """Return the rate at which the smoothed loss falls fastest over the rate's logarithm, before its lowest.

    The FEWEST first losses are left out. Raises ReverieError where the loss never falls.
    """
    steps = steps[FEWEST:]
    smoothed = np.array([step.smoothed for step in steps])
    end = int(smoothed.argmin()) + 1 if len(steps) else 0
    if end < FEWEST:
        raise ReverieError(
            f"the loss rose from the start, or fell in {end} steps alone, which proposes no rate; look at the recipe, "
            "and at rate.json in the run's folder"
        )
    slopes = np.gradient(smoothed[:end], np.log([step.rate for step in steps[:end]]))
    return steps[int(slopes.argmin())].rate


def chart(steps: Sequence[RateStep], best: float | None) -> Image.Image:
    """Draw the smoothed loss over the rate's logarithm, each decade named, with a line at the best, if there is one."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    first, last = math.log10(steps[0].rate), math.log10(steps[-1].rate)
    losses = [step.smoothed for step in steps]
    low, high = min(losses), max(losses)

    def across(rate: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (math.log10(rate) - first) / (last - first)

    def down(loss: float) -> float:
        return HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (loss - low) / ((high - low) or 1)

    for decade in range(math.ceil(first), math.floor(last) + 1):
        draw.line([(across(10**decade), EDGE), (across(10**decade), HEIGHT - EDGE)], "lightgrey")
        draw.text((across(10**decade), HEIGHT - EDGE + 4), f"1e{decade}", "black", anchor="ma")
    for loss in (low, high):
        draw.text((EDGE - 4, down(loss)), f"{loss:.3g}", "black", anchor="rm")
    if best is not None:
        draw.line([(across(best), EDGE), (across(best), HEIGHT - EDGE)], "red")
        draw.text((across(best), EDGE - 4), f"lr = {best:.2g}", "red", anchor="md")
    draw.line([(across(step.rate), down(step.smoothed)) for step in steps], "black", 2)
    return picture
