"""Checkpoints of a run: all of its state in one file that is whole at any moment."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile

import torch

from reverie.errors import ReverieError
from reverie.files import atomic_write
from reverie.train import begun
from reverie.train.parallel import is_restarted

CHECKPOINT = "checkpoint.pt"  # in the folder of a run


class Stateful(Protocol):
    """What the rest of a run depends on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state. Raises KeyError, TypeError, ValueError or RuntimeError where it is of another recipe."""


def save_checkpoint(path: Path, step: int, learner: Stateful) -> None:
    """Write the state after `step` steps: `path` is whole at any moment, also after a power cut."""
    with atomic_write(path, sync=True) as temporary, temporary.open("wb") as file:
        torch.save({"step": step, **learner.state_dict()}, file)


def load_checkpoint(path: Path, learner: Stateful) -> int:
    """Take up the state of a checkpoint and return how many steps it has done.

    Raises ReverieError where the file is damaged or of another recipe.
    """
    damaged = f"{path} is damaged or not a checkpoint; remove it to start anew"
    try:
        with ZipFile(path) as archive:  # whose checksums torch does not look at
            if archive.testzip() is not None:
                raise ReverieError(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError) as error:
        raise ReverieError(damaged) from error
    try:
        learner.load_state_dict(state)
        return int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ReverieError(
            f"{path} was written by another recipe; resume with that one or choose another `out`"
        ) from error


def check(out: Path, resume: bool) -> None:
    """Raise ReverieError where a folder holds a run and `resume` is not set, or none to go on with.

    A run that was stopped before its first checkpoint goes on from its beginning, with the latents that it has. What
    torchrun starts anew goes on, whatever was asked for at first.
    """
    if is_restarted():
        return
    trained = (out / CHECKPOINT).exists()
    if resume and not trained and not (out / begun.RECIPE).exists():
        raise ReverieError(f"nothing to resume in {out}: no run was begun there; start without `resume`")
    if trained and not resume:
        raise ReverieError(f"{out} already holds a run; continue it with `resume` or choose another `out`")
