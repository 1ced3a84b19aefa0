"""`reverie train`, `finetune` and `distill`: run a recipe and show how it goes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.options import Flag, say
from reverie.cli.progress import show_progress
from reverie.errors import ReverieError

Plan = Annotated[bool | str, Parameter(negative=(), show_default=False)]  # alone, or of a machine
SHOWN = 14  # rates that `--find-rate` prints, two a decade


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LatentsOptions:
    """Choose where what learns from latents made ahead keeps its run, and how far it goes."""

    out: Path | None = None
    """Folder for latents, checkpoints, logs and samples; runs/NAME if not given."""
    resume: Flag = False
    """Go on with the run in that folder."""
    prepare: Flag = False
    """Make the latents alone."""
    plan: Plan = False
    """Say what it would cost in memory, time and on disk, and do nothing; on gpus=8,memory=80GB,rate=100TFLOP/s."""
    find_rate: Flag = False
    """Find the learning rate by 100 steps at growing ones, and propose it; the run is not begun."""


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Say on stderr how stopped work goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; {how}", file=sys.stderr)
        raise


def train(
    recipe: Path,
    /,
    *,
    out: Path | None = None,
    resume: Flag = False,
    plan: Plan = False,
    find_rate: Flag = False,
) -> None:
    """Train a model from a recipe; Ctrl-C stops it, --resume goes on from the last checkpoint to the same bits.

    It learns on several GPUs or machines too: torchrun --nproc-per-node 8 --no-python reverie train RECIPE

    Parameters
    ----------
    recipe
        A .toml file, such as recipes/autoencoder.toml.
    out
        Folder for checkpoints, logs and samples; runs/NAME if not given.
    resume
        Go on with the run in that folder.
    plan
        Say what it would cost in memory, time and on disk, and do nothing; on gpus=8,memory=80GB,rate=100TFLOP/s.
    find_rate
        Find the learning rate by 100 steps at growing ones, and propose it; the run is not begun.
    """
    _check_alone(find_rate, resume, plan is not False)
    if plan is not False:
        _say_plan(recipe, plan)
        return
    if find_rate:
        _find_rate(recipe, out)
        return
    from reverie.train import run
    from reverie.train.parallel import is_first
    from reverie.train.recipe import folder_of

    with resumable("--resume goes on from the last checkpoint"):
        for _ in show_progress(run(recipe, out, resume)):
            pass
    if is_first():
        say(str(folder_of(recipe, out)))


def finetune(recipe: Path, /, *, learning: LatentsOptions = LatentsOptions()) -> None:
    """Fine-tune a model by a recipe: first its examples are turned into latents, then it learns from them.

    Either can be stopped with Ctrl-C: the latents go on where they were, and --resume goes on with the learning.

    Parameters
    ----------
    recipe
        A .toml file, such as recipes/finetune-pictures.toml.
    """
    _learn_from_latents("finetune", recipe, learning)


def distill(recipe: Path, /, *, learning: LatentsOptions = LatentsOptions()) -> None:
    """Distil a model by a recipe: a student, whole or a LoRA, learns to draw in one to four steps.

    First the examples are turned into latents. Either can be stopped with Ctrl-C: the latents go on where they were,
    and --resume goes on with the learning.

    Parameters
    ----------
    recipe
        A .toml file, such as recipes/turbo.toml.
    """
    _learn_from_latents("distill", recipe, learning)


def _learn_from_latents(objective: str, recipe: Path, learning: LatentsOptions) -> None:
    """Make the latents of a recipe of an objective, then train."""
    _check_alone(learning.find_rate, learning.resume, learning.prepare, learning.plan is not False)
    if learning.plan is not False:
        _say_plan(recipe, learning.plan)
        return
    from reverie.train import finetune, rate
    from reverie.train.checkpoint import check
    from reverie.train.recipe import folder_of

    out = learning.out
    if learning.find_rate:
        rate.read_recipe(recipe)  # what is wrong is said before latents are made
    elif not learning.prepare:
        check(folder_of(recipe, out), learning.resume)
    with resumable("the same command goes on with the latents"):
        for _ in show_progress(finetune.prepare(recipe, out, objective, begin=not learning.find_rate)):
            pass
    if learning.find_rate:
        _find_rate(recipe, out)
    elif learning.prepare:
        say(str(folder_of(recipe, out)))
    else:
        train(recipe, out=out, resume=learning.resume)


def _check_alone(find_rate: bool, *others: bool) -> None:
    if find_rate and any(others):
        raise ReverieError("--find-rate begins no run; leave out --resume, --prepare and --plan")


def _find_rate(recipe: Path, out: Path | None) -> None:
    from reverie.train.rate import search, suggest
    from reverie.train.recipe import folder_of

    steps = list(show_progress(search(recipe, out)))
    for step in steps[:: max(1, len(steps) // SHOWN)]:
        say(f"lr {step.rate:8.1e}   loss {step.smoothed:.4g}")
    picture = folder_of(recipe, out) / "rate.png"
    say(f"lr = {suggest(steps):.1e} is proposed: there the loss falls fastest; see {picture}")


def _say_plan(recipe: Path, given: bool | str) -> None:
    from reverie.train.plan import Hardware, plan

    for line in list(plan(recipe, Hardware.of(given) if isinstance(given, str) else Hardware())):  # all or nothing
        say(line)
