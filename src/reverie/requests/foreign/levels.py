"""Where on the way a step of another program's sampler lies, told without torch: a refiner takes over there."""

from __future__ import annotations

import math
from functools import cache

TIMESTEPS = 1000
BETAS = (0.00085, 0.012)  # of Stable Diffusion's schedule, whose square roots are spaced evenly
RHO = 7.0


def way_at(schedule: str, step: int, steps: int) -> float:
    """Return the fraction of the timesteps that lies between two steps, `step` - 1 and `step` of `steps`, from 0.

    The levels are those of `diffusion.spacings`; ones that are not among them are taken for even.
    """
    between = (_timestep(schedule, step - 1, steps) + _timestep(schedule, step, steps)) / 2
    return round(min(1.0, max(0.0, 1 - between / TIMESTEPS)), 4)


def _timestep(schedule: str, step: int, steps: int) -> float:
    """Return the timestep of a step, from 999 to 0."""
    last = TIMESTEPS - 1
    if schedule in ("normal", "linspace"):
        return last * (1 - step / max(1, steps - 1))
    if schedule in ("karras", "exponential"):
        return _timestep_of(_sigma(schedule, step / max(1, steps - 1)))
    return last * (1 - step / steps)


def _sigma(schedule: str, part: float) -> float:
    largest, smallest = _sigmas()[-1], _sigmas()[0]
    if schedule == "exponential":
        return math.exp((1 - part) * math.log(largest) + part * math.log(smallest))
    return float(((1 - part) * largest ** (1 / RHO) + part * smallest ** (1 / RHO)) ** RHO)


def _timestep_of(sigma: float) -> float:
    """Return the timestep of a level, linear in log sigma between whole ones."""
    sigmas = _sigmas()
    above = next((t for t, one in enumerate(sigmas) if one >= sigma), TIMESTEPS - 1)
    if above == 0:
        return 0.0
    low, high = math.log(sigmas[above - 1]), math.log(sigmas[above])
    return above - 1 + min(1.0, (math.log(sigma) - low) / (high - low))


@cache
def _sigmas() -> list[float]:
    first, last = (math.sqrt(beta) for beta in BETAS)
    kept, sigmas = 1.0, []
    for t in range(TIMESTEPS):
        kept *= 1 - (first + (last - first) * t / (TIMESTEPS - 1)) ** 2
        sigmas.append(math.sqrt((1 - kept) / kept))
    return sigmas
