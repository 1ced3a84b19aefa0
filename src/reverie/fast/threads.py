"""How many threads does computing gain from? As many as the limits on this process let run at once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

CONTROL = Path("/sys/fs/cgroup")
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which people choose themselves


def limit_threads(environment: Mapping[str, str] = os.environ, control: Path = CONTROL) -> None:
    """Let torch use no more threads than a container's limit lets run, which it does not look at by itself.

    It never uses more than before, and nothing changes where the environment says how many.
    """
    limit = quota(control)
    if limit is not None and not any(environment.get(name) for name in CHOSEN):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), math.ceil(limit))))


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
