"""`reverie finetune`: how does a model learn from a user's pictures, or from music?"""

from __future__ import annotations

from pathlib import Path

from reverie.cli.options import Flag
from reverie.cli.output import say
from reverie.cli.progress import watched
from reverie.cli.train import train


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
    from reverie.train import finetune
    from reverie.train.loop import check
    from reverie.train.recipe import folder_of

    if not prepare:
        check(folder_of(recipe, out), resume)
    for _ in watched(finetune.prepare(recipe, out)):
        pass
    if prepare:
        say(str(folder_of(recipe, out)))
    else:
        train(recipe, out=out, resume=resume)
