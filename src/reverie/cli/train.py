"""`reverie train`, `finetune` and `distill`: run a recipe and show how it goes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reverie.cli.options import Flag
from reverie.cli.output import say
from reverie.cli.progress import show_progress


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Say on stderr how stopped work goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; {how}", file=sys.stderr)
        raise


def train(recipe: Path, /, *, out: Path | None = None, resume: Flag = False) -> None:
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
    """
    from reverie.train import run
    from reverie.train.parallel import is_first
    from reverie.train.recipe import folder_of

    with resumable("--resume goes on from the last checkpoint"):
        for _ in show_progress(run(recipe, out, resume)):
            pass
    if is_first():
        say(str(folder_of(recipe, out)))


def finetune(recipe: Path, /, *, out: Path | None = None, resume: Flag = False, prepare: Flag = False) -> None:
    """Fine-tune a model by a recipe: first its examples are turned into latents, then it learns from them.

    Either can be stopped with Ctrl-C: the latents go on where they were, and --resume goes on with the learning.

    Parameters
    ----------
    recipe
        A .toml file, such as recipes/finetune-pictures.toml.
    out
        Folder for latents, checkpoints, logs and samples; runs/NAME if not given.
    resume
        Go on with the run in that folder.
    prepare
        Make the latents alone.
    """
    _learn_from_latents("finetune", recipe, out, resume, prepare)


def distill(recipe: Path, /, *, out: Path | None = None, resume: Flag = False, prepare: Flag = False) -> None:
    """Distil a model by a recipe: a student, whole or a LoRA, learns to draw in one to four steps.

    First the examples are turned into latents. Either can be stopped with Ctrl-C: the latents go on where they were,
    and --resume goes on with the learning.

    Parameters
    ----------
    recipe
        A .toml file, such as recipes/turbo.toml.
    out
        Folder for latents, checkpoints, logs and samples; runs/NAME if not given.
    resume
        Go on with the run in that folder.
    prepare
        Make the latents alone.
    """
    _learn_from_latents("distill", recipe, out, resume, prepare)


def _learn_from_latents(objective: str, recipe: Path, out: Path | None, resume: bool, prepare: bool) -> None:
    """Make the latents of a recipe of an objective, then train."""
    from reverie.train import finetune
    from reverie.train.loop import check
    from reverie.train.recipe import folder_of

    if not prepare:
        check(folder_of(recipe, out), resume)
    with resumable("the same command goes on with the latents"):
        for _ in show_progress(finetune.prepare(recipe, out, objective)):
            pass
    if prepare:
        say(str(folder_of(recipe, out)))
    else:
        train(recipe, out=out, resume=resume)
