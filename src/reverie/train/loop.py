"""How does any of the models learn? One loop: take a batch, step each group of parameters, log, save, go on.

Nothing random lives outside (seed, step): an objective draws batch and noise of step n from that pair alone, so a run
that was killed and resumed from a checkpoint ends in the same bits as one that never stopped (at one thread count).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.train.ema import EMA

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


class Objective(Protocol):
    """What the loop knows of a thing to learn."""

    networks: nn.ModuleDict  # everything whose state is part of a checkpoint
    averaged: nn.Module  # the part that is kept as a moving average

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


@dataclass(frozen=True)
class Event:
    """Tell of one logged step: metrics are means since the last event; rate is in steps a second."""

    step: int
    total: int
    metrics: dict[str, float]
    rate: float
    seconds_left: float


def learning_rate(settings: RunSettings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to a tenth, or constant."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.decay == "constant":
        return settings.lr * rise
    progress = min(1.0, step / max(1, settings.steps))
    return settings.lr * rise * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the random numbers of one step, the same in every run and after every interruption."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) * 8 + stream)


def train(objective: Objective, settings: RunSettings, out: Path, *, resume: bool = False) -> Iterator[Event]:
    """Run the loop, yielding an event every `log_every` steps; write checkpoints, samples and at last the export.

    Raises ReverieError where `out` holds a run already and `resume` is not set, or nothing to resume from.
    """
    out.mkdir(parents=True, exist_ok=True)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    groups = objective.groups()
    optimisers = {
        name: torch.optim.AdamW(
            parameters, settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
        for name, parameters in groups.items()
    }
    average = EMA(objective.averaged, settings.ema) if settings.ema else None
    start = _begin(objective, optimisers, average, out, resume)
    sums: dict[str, list[float]] = {}
    since, counted = time.monotonic(), 0
    for step in range(start, settings.steps):
        rate = learning_rate(settings, step)
        for name, loss, metrics in objective.losses(step):
            _update(optimisers[name], groups[name], loss, rate, settings.clip)
            for key, value in metrics.items():
                sums.setdefault(key, []).append(value)
        objective.after_step()
        if average is not None:
            average.update(objective.averaged)
        counted += 1
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            elapsed = time.monotonic() - since
            means = {key: sum(values) / len(values) for key, values in sums.items()} | {"lr": rate}
            yield _log(out, Event(done, settings.steps, means, counted / elapsed, (settings.steps - done) * elapsed / counted))
            sums, since, counted = {}, time.monotonic(), 0
        if done % settings.save_every == 0 or done == settings.steps:
            save_checkpoint(out / CHECKPOINT, done, objective, optimisers, average)
        if done % settings.sample_every == 0 or done == settings.steps:
            _sample(objective, average, out, done)
    if average is not None:
        with average.applied(objective.averaged):
            objective.export(out / "export")
    else:
        objective.export(out / "export")


def _update(
    optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor, rate: float, clip: float
) -> None:
    """Step one group down the gradient of its loss; no other group's gradient is computed."""
    if not torch.isfinite(loss):
        raise ReverieError(f"the loss became {loss.item()}; lower lr or raise warmup in the recipe, then start again")
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, clip)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def save_checkpoint(
    path: Path,
    step: int,
    objective: Objective,
    optimisers: dict[str, torch.optim.AdamW],
    average: EMA | None,
) -> None:
    """Write everything that the rest of the run depends on, beside, then rename."""
    state = {
        "step": step,
        "networks": objective.networks.state_dict(),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "average": None if average is None else average.state_dict(),
    }
    beside = path.with_suffix(".writing")
    torch.save(state, beside)
    os.replace(beside, path)


def _begin(
    objective: Objective,
    optimisers: dict[str, torch.optim.AdamW],
    average: EMA | None,
    out: Path,
    resume: bool,
) -> int:
    path = out / CHECKPOINT
    if not path.exists():
        if resume:
            raise ReverieError(f"nothing to resume in {out}: it has no {CHECKPOINT}; start without --resume")
        return 0
    if not resume:
        raise ReverieError(f"{out} already holds a run; continue it with --resume or choose another --out")
    state = torch.load(path, map_location="cpu", weights_only=True)
    objective.networks.load_state_dict(state["networks"])
    for name, optimiser in optimisers.items():
        optimiser.load_state_dict(state["optimisers"][name])
    if average is not None:
        average.load_state_dict(state["average"])
    return int(state["step"])


def _sample(objective: Objective, average: EMA | None, out: Path, step: int) -> None:
    if average is None:
        sheet = objective.samples()
    else:
        with average.applied(objective.averaged):
            sheet = objective.samples()
    if sheet is not None:
        (out / "samples").mkdir(exist_ok=True)
        sheet.save(out / "samples" / f"{step:06d}.png")


def _log(out: Path, event: Event) -> Event:
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(asdict(event)) + "\n")
    return event
