"""Checkpoints of a run: all of its state, in one file or in a folder of parts, whole at any moment."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile

import torch

from reverie.errors import ReverieError
from reverie.files import atomic_write, unwritable
from reverie.train import begun
from reverie.train.parallel import is_first, is_restarted

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
PARTS = "checkpoints"  # the same in parts: a folder for the step, see `sharding`
DAMAGED = (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError)


class Stateful(Protocol):
    """What the rest of a run depends on."""

    in_parts: bool  # each process holds, and writes, parts of its tensors

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def make_states(self) -> None:
        """Let the state have all the tensors that it can have, whatever they hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state. Raises KeyError, TypeError, ValueError or RuntimeError where it is of another recipe."""


def latest(out: Path) -> Path | None:
    """Return the checkpoint that the run in a folder goes on from, where there is one."""
    whole = sorted(path.parent for path in (out / PARTS).glob("*/.metadata"))
    file = out / CHECKPOINT
    return whole[-1] if whole else file if file.exists() else None


def save_checkpoint(out: Path, step: int, learner: Stateful) -> None:
    """Write the state after `step` steps; until it is whole the one before stays, also after a power cut.

    All processes call it; those that hold no parts of their own leave it to the first.
    """
    state, path, file = {"step": step, **learner.state_dict()}, out / PARTS / f"{step:08d}", out / CHECKPOINT
    if learner.in_parts:
        with unwritable(path):
            from reverie.train.sharding import save

            save(path, state)
        for old in (out / PARTS).iterdir() if is_first() else ():
            if old != path:
                shutil.rmtree(old)
        if is_first():
            file.unlink(missing_ok=True)
    elif is_first():
        with atomic_write(file, sync=True) as temporary, temporary.open("wb") as opened:
            torch.save(state, opened)
        shutil.rmtree(out / PARTS, ignore_errors=True)


def load_checkpoint(path: Path, learner: Stateful) -> int:
    """Take up the state of a checkpoint and return how many steps it has done.

    Raises ReverieError where the file is damaged or of another recipe.
    """
    foreign = f"{path} was written by another recipe; resume with that one or choose another `out`"
    try:
        state = _read(path, learner)
    except DAMAGED as error:
        raise ReverieError(f"{path} is damaged or not a checkpoint; remove it to start anew") from error
    except ValueError as error:
        raise ReverieError(foreign) from error
    try:
        learner.load_state_dict(state)
        return int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ReverieError(foreign) from error


def _read(path: Path, learner: Stateful) -> dict[str, Any]:
    """Read a checkpoint into what the learner holds, or whole. Raises ValueError for one of another recipe."""
    if path.is_dir():
        from reverie.train.sharding import load

        return load(path, _own(learner))
    with ZipFile(path) as archive:  # whose checksums torch does not look at
        if archive.testzip() is not None:
            raise BadZipFile
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if learner.in_parts:
        from reverie.train.sharding import divide

        return divide(state, _own(learner))
    return state


def _own(learner: Stateful) -> dict[str, Any]:
    learner.make_states()
    return {"step": 0, **learner.state_dict()}


def check(out: Path, resume: bool) -> None:
    """Raise ReverieError where a folder holds a run and `resume` is not set, or none to go on with.

    A run that was stopped before its first checkpoint goes on from its beginning, with the latents that it has. What
    torchrun starts anew goes on, whatever was asked for at first.
    """
    if is_restarted():
        return
    is_trained = latest(out) is not None
    if resume and not is_trained and not (out / begun.RECIPE).exists():
        raise ReverieError(f"nothing to resume in {out}: no run was begun there; start without `resume`")
    if is_trained and not resume:
        raise ReverieError(f"{out} already holds a run; continue it with `resume` or choose another `out`")
