"""The order of convergence of every deterministic solver, measured on the exact flow of Gaussian data in float64.

A solver of order p halves its error 2^-p-fold when its steps double; the slope is measured over the last doubling.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import islice

import pytest
import torch

from reverie.diffusion.samplers import SAMPLERS, dpm2, dpmpp_2m, dpmpp_2s, dpmpp_3m, euler, heun, lms, plms, unipc
from reverie.diffusion.step import Past, Point, Sampler

X = torch.tensor([[2.0, -3.0, 9.0]], dtype=torch.float64)
STEPS = (20, 40, 80, 160)


class NoNoise:
    """The noise of a solver that must draw none."""

    def next(self) -> torch.Tensor:
        raise AssertionError("a deterministic solver drew noise")


NO_NOISE = NoNoise()


def geometric(fraction: torch.Tensor) -> torch.Tensor:
    """Levels from 10 to 0.05, evenly in log sigma."""
    return 10 * (0.05 / 10) ** fraction


def even(fraction: torch.Tensor) -> torch.Tensor:
    """Levels from 4 to 1, evenly in sigma."""
    return 4 - 3 * fraction


def errors(sampler: Sampler, gaussian, levels, remembered: int = 0) -> list[float]:
    """Measure the error for each of STEPS, given so many exact earlier points, and stopped short of the last steps.

    A multistep solver starts and ends at a lower order; so that its own order shows, it gets a past that lies on the
    exact flow, and three levels more than it is run for.
    """
    found = []
    for steps in STEPS:
        sigmas = levels(torch.arange(-remembered, steps + 4, dtype=torch.float64) / steps)
        start, end = sigmas[remembered].item(), sigmas[remembered + steps].item()
        past: Past = ()
        for sigma in sigmas[:remembered].tolist():
            x = gaussian.flow(X, start, sigma)
            past += (Point(sigma, x, gaussian.denoise(x, sigma)),)
        *_, last = islice(sampler(gaussian.denoise, X, sigmas[remembered:], NO_NOISE, past), steps)
        assert last.sigma == end
        found.append((last.x - gaussian.flow(X, start, end)).abs().max().item())
    return found


def slope(found: list[float]) -> float:
    return math.log2(found[-2] / found[-1])


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpm2, 2), (dpmpp_2s, 2)])
@pytest.mark.parametrize("levels", [geometric, even])
def test_the_order_of_one_step_solvers(sampler: Sampler, order: int, levels, gaussian) -> None:
    assert slope(errors(sampler, gaussian, levels)) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(
    ("sampler", "levels", "order"),
    [
        (partial(lms, order=1), geometric, 1),
        (partial(lms, order=2), geometric, 2),
        (partial(lms, order=3), geometric, 3),
        (lms, geometric, 4),
        (lms, even, 4),
        (plms, even, 4),
        (plms, geometric, 2),  # its weights are those of even steps
        (dpmpp_2m, geometric, 2),
        (dpmpp_2m, even, 2),
        (dpmpp_3m, geometric, 2),  # not 3: see its docstring
        (partial(unipc, order=1), geometric, 2),
        (unipc, geometric, 3),
        (unipc, even, 3),
        (partial(unipc, order=3), geometric, 4),
    ],
)
def test_the_order_of_multistep_solvers(sampler: Sampler, levels, order: int, gaussian) -> None:
    assert slope(errors(sampler, gaussian, levels, remembered=3)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", ["heun", "dpm2", "lms", "plms", "dpmpp_2m", "unipc"])
def test_started_from_nothing_they_still_beat_euler_by_an_order(name: str, gaussian) -> None:
    found = errors(SAMPLERS[name], gaussian, geometric)
    assert slope(found) > 1.9
    assert found[0] < errors(euler, gaussian, geometric)[0] / 5


def test_lms_integrates_what_a_polynomial_interpolates() -> None:
    """dx/dsigma of degree 3 in sigma is followed exactly from an exact past, whatever the levels."""
    sigmas = torch.tensor([9.0, 7.0, 6.5, 4.0, 2.0, 0.5], dtype=torch.float64)
    curve = sigmas.view(-1, 1, 1) ** 4
    past = tuple(Point(s, x, x - s * 4 * s**3) for s, x in zip(sigmas[:3].tolist(), curve, strict=False))
    *_, last = lms(lambda x, s: x - 4 * s**4, curve[3], sigmas[3:], NO_NOISE, past)
    torch.testing.assert_close(last.x, curve[-1])
