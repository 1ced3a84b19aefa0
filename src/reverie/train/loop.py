"""How does any of the models learn? One loop: take a batch, step each group of parameters, log, save, go on.

Nothing random lives outside (seed, step): an objective draws batch and noise of step n from that pair alone, so a run
that was killed and resumed from a checkpoint ends in the same bits as one that never stopped (at one thread count).
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.system import pick_device
from reverie.train.ema import EMA
from reverie.train.log import Event, Log, Meter

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class RunSettings:
    """Set how long and how fast to learn; the section [run] of a recipe."""

    steps: int
    lr: float
    seed: int = 0
    warmup: int = 100  # steps of linear growth of the learning rate
    decay: str = "cosine"  # "cosine" to a tenth, or "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of a group's gradient
    ema: float = 0.0  # largest decay of the averaged weights; 0 keeps no average
    log_every: int = 10
    save_every: int = 200
    sample_every: int = 1000
    threads: int = 0  # torch threads; 0 leaves torch's choice
    device: str = "auto"  # "cpu", "cuda", ...; "auto" takes a GPU where there is one

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no run can use."""
        for name in ("steps", "lr", "log_every", "save_every", "sample_every"):
            if not getattr(self, name) > 0:
                raise ReverieError(f"{name} = {getattr(self, name)} in [run] of the recipe; give more than 0")
        if self.decay not in ("cosine", "constant"):
            raise ReverieError(f"unknown decay {self.decay!r} in [run] of the recipe; choose from cosine, constant")


class Objective(Protocol):
    """What the loop knows of a thing to learn."""

    networks: nn.ModuleDict  # everything whose state is part of a checkpoint
    averaged: nn.Module  # the part that is kept as a moving average

    def move(self, device: torch.device) -> None:
        """Put all that computes onto a device. Batches and noise are still drawn on the CPU, the same everywhere."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the groups of parameters, each with an optimiser of its own."""

    def losses(self, step: int) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield (group, loss, metrics) in turn; each loss is stepped before the next is computed."""

    def after_step(self) -> None:
        """Put parameters back into their range, where they have one."""

    def samples(self) -> Image.Image | None:
        """Draw a contact sheet of what has been learned so far."""

    def export(self, folder: Path) -> None:
        """Write what was learned, for use."""


def learning_rate(settings: RunSettings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to a tenth, or constant."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.decay == "constant":
        return settings.lr * rise
    progress = min(1.0, step / max(1, settings.steps))
    return settings.lr * rise * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's first parameter is."""
    return next(network.parameters()).device


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the random numbers of one step, the same in every run and after every interruption."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) * 8 + stream)


class Learner:
    """Hold all that a run changes: the networks, an optimiser for each group of parameters, the moving average."""

    def __init__(self, objective: Objective, settings: RunSettings) -> None:
        self.objective, self.settings = objective, settings
        self.groups = objective.groups()
        self.optimisers = {name: _optimiser(parameters, settings) for name, parameters in self.groups.items()}
        self.average = EMA(objective.averaged, settings.ema) if settings.ema else None

    def step(self, step: int) -> list[tuple[str, float]]:
        """Take one step and return its metrics."""
        metrics: list[tuple[str, float]] = []
        for name, loss, told in self.objective.losses(step):
            self._descend(name, loss, learning_rate(self.settings, step))
            metrics += told.items()
        self.objective.after_step()
        if self.average is not None:
            self.average.update()
        return metrics

    def _descend(self, group: str, loss: Tensor, rate: float) -> None:
        """Step one group down the gradient of its loss; no other group's gradient is computed."""
        if not torch.isfinite(loss):
            raise ReverieError(
                f"the loss became {loss.item()}; lower lr or raise warmup in the recipe, then start again"
            )
        parameters, optimiser = self.groups[group], self.optimisers[group]
        # Not autograd.grad: fused AdamW needs gradients laid out in memory as their parameters, which backward sees to.
        torch.autograd.backward(loss, inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        for options in optimiser.param_groups:
            options["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def averaged(self) -> AbstractContextManager[None]:
        """Lend the moving average, where there is one, to the network for the length of a `with` block."""
        return nullcontext() if self.average is None else self.average.applied()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the rest of the run depends on."""
        return {
            "networks": self.objective.networks.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state. Raises KeyError, ValueError or RuntimeError where it is of another recipe."""
        if state["optimisers"].keys() != self.optimisers.keys() or (state["average"] is None) != (self.average is None):
            raise ValueError("other groups of parameters, or a moving average on one side only")
        self.objective.networks.load_state_dict(state["networks"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def _optimiser(parameters: list[nn.Parameter], settings: RunSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,  # a third of the time; a checkpoint written without it goes on without it
    )


def train(build: Callable[[], Objective], settings: RunSettings, out: Path, *, resume: bool = False) -> Iterator[Event]:
    """Run the loop, yielding an event every `log_every` steps; write checkpoints, samples and at last the export.

    Raises ReverieError where `out` holds a run already and `resume` is not set, or nothing to resume from.
    """
    _check(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    objective = build()
    objective.move(pick_device(settings.device))
    learner = Learner(objective, settings)
    start = load_checkpoint(out / CHECKPOINT, learner) if resume else 0
    with Log(out, start) as log:
        meter = Meter(settings.steps)
        for step in range(start, settings.steps):
            meter.add(learner.step(step))
            done, last = step + 1, step + 1 == settings.steps
            if last or done % settings.log_every == 0:
                event = meter.event(done, learning_rate(settings, step))
                log.event(event)
                yield event
                meter.restart()
            if last or done % settings.save_every == 0:
                save_checkpoint(out / CHECKPOINT, done, learner)
            if last or done % settings.sample_every == 0:
                _sample(learner, log, done)
    with learner.averaged():
        learner.objective.export(out / "export")


def save_checkpoint(path: Path, step: int, learner: Learner) -> None:
    """Write the state after `step` steps beside, then rename: `path` is whole at any moment."""
    beside = path.with_suffix(".writing")
    with beside.open("wb") as file:
        torch.save({"step": step, **learner.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load_checkpoint(path: Path, learner: Learner) -> int:
    """Take up the state of a checkpoint and return how many steps it has done.

    Raises ReverieError where the file is damaged or of another recipe.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ReverieError(f"{path} is damaged or not a checkpoint; remove it to start anew") from error
    try:
        learner.load_state_dict(state)
        return int(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ReverieError(
            f"{path} was written by another recipe; resume with that one or choose another --out"
        ) from error


def _check(out: Path, resume: bool) -> None:
    begun = (out / CHECKPOINT).exists()
    if resume and not begun:
        raise ReverieError(f"nothing to resume in {out}: it has no {CHECKPOINT}; start without --resume")
    if begun and not resume:
        raise ReverieError(f"{out} already holds a run; continue it with --resume or choose another --out")


def _sample(learner: Learner, log: Log, step: int) -> None:
    with learner.averaged():
        sheet = learner.objective.samples()
    if sheet is not None:
        log.sheet(sheet, step)
