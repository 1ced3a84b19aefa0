"""Optimisers and the course of the learning rate, as a recipe's [run] names them.

An optimiser is made of groups of parameters with their weight decay and pace, and named by a suffix in checkpoints, so
that none takes up another's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.train.loop import RunSettings

Groups = list[dict[str, Any]]


class Diverged(ReverieError):
    """A loss or the norm of a gradient is not finite: the steps were too large."""


RATES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
"""Course of the learning rate: share of the run that is over -> what is left of the rate (cosine: down to a tenth)."""


def learning_rate(settings: RunSettings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then its course."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.lr * rise * RATES[settings.decay](min(1.0, step / max(1, settings.steps)))


def adamw(groups: Groups, settings: RunSettings) -> dict[str, Optimizer]:
    """Make AdamW (Loshchilov and Hutter 1711.05101); fused, it takes a third of the time."""
    return {"": torch.optim.AdamW(groups, settings.lr, betas=settings.betas, eps=settings.eps, fused=True)}


def adafactor(groups: Groups, settings: RunSettings) -> dict[str, Optimizer]:
    """Make Adafactor, which keeps rows and columns of the second moments alone (Shazeer and Stern 1804.04235)."""
    _refuse(settings, "betas", "eps")
    return {"/adafactor": torch.optim.Adafactor(groups, settings.lr)}


def lion(groups: Groups, settings: RunSettings) -> dict[str, Optimizer]:
    """Make Lion, which steps by signs: a third to a tenth of AdamW's lr (Chen et al. 2302.06675)."""
    _refuse(settings, "eps")
    return {"/lion": _library("lion_pytorch").Lion(groups, settings.lr, betas=settings.betas)}


def prodigy(groups: Groups, settings: RunSettings) -> dict[str, Optimizer]:
    """Make Prodigy, which finds its own rate: lr is its factor, 1 as a rule (Mishchenko and Defazio 2306.06101)."""
    if any(group["pace"] != 1 for group in groups):
        raise ReverieError("optimiser = 'prodigy' in [run] finds one rate for all; leave out pace in [text], or give 1")
    kind = _library("prodigyopt").Prodigy
    return {"/prodigy": kind(groups, settings.lr, betas=settings.betas, eps=settings.eps)}


def muon(groups: Groups, settings: RunSettings) -> dict[str, Optimizer]:
    """Make Muon for matrices, at the size of AdamW's steps, and AdamW for all else (Liu et al. 2502.16982, 2.2)."""
    matrices, others = _those(groups, lambda parameter: parameter.ndim == 2), _those(groups, lambda p: p.ndim != 2)
    made: dict[str, Optimizer] = {}
    if matrices:
        made["/muon"] = torch.optim.Muon(matrices, settings.lr, adjust_lr_fn="match_rms_adamw")
    return made | (adamw(others, settings) if others else {})


OPTIMISERS: dict[str, Callable[[Groups, RunSettings], dict[str, Optimizer]]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "prodigy": prodigy,
    "muon": muon,
}
"""(groups of parameters, settings of the run) -> optimisers by the suffix that names them in a checkpoint."""

ELEMENTWISE = ("adamw", "lion")  # those that need no more of a weight than a part to step it


def make_optimisers(
    parameters: list[nn.Parameter], settings: RunSettings, paces: Mapping[nn.Parameter, float]
) -> dict[str, Optimizer]:
    """Make the optimisers of a group of parameters; those in `paces` learn at so many times the run's rate."""
    kinds: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        spared = settings.spare_gains and parameter.ndim < 2
        is_whole = settings.shard and parameter.ndim == 0  # and its neighbours are not
        kinds.setdefault((paces.get(parameter, 1.0), spared, is_whole), []).append(parameter)
    groups: Groups = [
        {"params": alike, "pace": pace, "weight_decay": 0.0 if spared else settings.weight_decay}
        for (pace, spared, _), alike in sorted(kinds.items(), key=lambda kind: kind[0])
    ]
    return OPTIMISERS[settings.optimiser](groups, settings)


def _those(groups: Groups, chosen: Callable[[nn.Parameter], bool]) -> Groups:
    kept = [group | {"params": [*filter(chosen, group["params"])]} for group in groups]
    return [group for group in kept if group["params"]]


def _refuse(settings: RunSettings, *names: str) -> None:
    """Raise ReverieError where a setting was changed that an optimiser does not have."""
    for name in names:
        if getattr(settings, name) != type(settings).__dataclass_fields__[name].default:
            raise ReverieError(f"{name} in [run] says nothing to optimiser = {settings.optimiser!r}; leave it out")


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ReverieError(f"the optimiser of {name} is not installed; install the extra `train`") from error
