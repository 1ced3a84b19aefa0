"""How many threads does computing gain from? As many as the limits on this process let run, and for small work one.

Threads wait for each other at the end of every operation. Where operations take microseconds, as in the bundled models,
a second thread gains a sixth on a machine that is idle; where another program holds a core, each wait is as long as the
scheduler's turn, and a picture that takes one thread half a second takes two of them most of a minute.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from threading import local
from typing import Any

import torch
from torch import nn

CONTROL = Path("/sys/fs/cgroup")
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which people choose themselves
SMALL = 2048  # numbers of an input up to which one thread computes: latents of 16x16, guided
_OUTSIDE = local()  # how many threads there were before the networks that this thread computes with were called


def limit_threads(environment: Mapping[str, str] = os.environ, control: Path = CONTROL) -> None:
    """Let torch use no more threads than a container's limit lets run, which it does not look at by itself.

    It never uses more than before, and nothing changes where the environment says how many.
    """
    limit = quota(control)
    if limit is not None and not _chosen(environment):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), math.ceil(limit))))


def spare_threads(network: nn.Module, environment: Mapping[str, str] = os.environ) -> None:
    """Let a network on the CPU compute on one thread where its input is small; nothing changes around its calls.

    It is for networks of small operations, and does nothing where the environment says how many threads to use.
    """
    if not _chosen(environment):
        network.register_forward_pre_hook(_enter)
        network.register_forward_hook(_leave, always_call=True)


def _chosen(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in CHOSEN)


def _enter(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    _OUTSIDE.__dict__.setdefault("counts", []).append(torch.get_num_threads())
    if inputs[0].device.type == "cpu" and inputs[0].numel() <= SMALL:
        torch.set_num_threads(1)


def _leave(network: nn.Module, inputs: object, output: object) -> None:
    torch.set_num_threads(_OUTSIDE.counts.pop())


def quota(control: Path = CONTROL) -> float | None:
    """Return how many processors' time the control group grants, None where it sets no limit or there is no group."""
    try:
        if (unified := control / "cpu.max").is_file():
            granted, period = unified.read_text().split()
        else:
            granted, period = (
                (control / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return int(granted) / int(period) if granted not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
