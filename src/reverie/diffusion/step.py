"""A step of a sampler: the interval it crosses, the formulas that all solvers share, and what it yields.

Every solver lives in the variance-exploding frame x = x0 + sigma eps, where the probability-flow equation is
dx/dsigma = (x - D(x, sigma)) / sigma   (Karras et al. 2206.00364, eq. 1 and 3 with sigma(t) = t).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.denoiser import Denoise
from reverie.errors import ReverieError

Latent = Float[Tensor, "b ..."]
Sigmas = Float[Tensor, " levels"]


class Point(NamedTuple):
    """Remember one evaluation of the denoiser, x0 = denoise(x, sigma)."""

    sigma: float
    x: Latent
    x0: Latent

    @property
    def slope(self) -> Latent:
        """Give dx/dsigma, which is also the noise eps that the denoiser sees in x."""
        return (self.x - self.x0) / self.sigma


Past = tuple[Point, ...]
"""The evaluations that a multistep solver still needs, latest last; empty for the others."""


@dataclass(frozen=True, eq=False)
class Step:
    """Tell where a sampler stands after crossing interval index of total.

    x is the state at noise level sigma, denoised the x0 that the step was made from. A step is a checkpoint: with
    k = index + 1, `sampler(denoise, step.x, sigmas[k:], noise, step.past)` goes on as if never interrupted.
    """

    index: int
    total: int
    sigma: float
    x: Latent
    denoised: Latent
    past: Past = ()


@runtime_checkable
class NoiseSource(Protocol):
    """Give fresh standard normal noise of the latent's shape, as `Noise` does."""

    def next(self) -> Tensor:
        """Give the next draw."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Carry x, at noise level sigmas[0], down to sigmas[-1], yielding every Step; the last Step.x is the result."""

    def __call__(
        self, denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), /
    ) -> Iterator[Step]:
        """Run the solver; one that draws no noise ignores noise, one that remembers nothing ignores past."""
        ...


@dataclass(frozen=True)
class Interval:
    """Name the two noise levels a step goes between, sigma > next >= 0."""

    index: int
    total: int
    sigma: float
    next: float

    @property
    def ratio(self) -> float:
        """Give next / sigma = exp(-h), with h the length of the interval in log-SNR/2."""
        return self.next / self.sigma

    def step(self, x: Latent, denoised: Latent, past: Past = ()) -> Step:
        """Report x as the state at the end of this interval."""
        return Step(self.index, self.total, self.next, x, denoised, past)


def intervals(sigmas: Sigmas) -> Iterator[Interval]:
    """Go through the neighbouring pairs of falling noise levels, as Python floats."""
    levels = sigmas.tolist()
    pairs = list(itertools.pairwise(levels))
    if not pairs or any(not high > low >= 0 for high, low in pairs):
        raise ReverieError(f"sigmas {levels} do not fall; give two or more levels, each below the one before")
    for index, (sigma, following) in enumerate(pairs):
        yield Interval(index, len(pairs), sigma, following)


def ancestral(sigma: float, next_sigma: float, eta: float) -> tuple[float, float]:
    """Split the level ahead into what the flow comes down to and what fresh noise brings back: down^2 + up^2 = next^2.

    up = eta next sqrt(sigma^2 - next^2) / sigma is sigma_t(eta) of DDIM (Song et al. 2010.02502, eq. 16) in this frame;
    at eta = 1 its square is the posterior variance of DDPM (Ho et al. 2006.11239, eq. 7).
    """
    up = min(next_sigma, eta * next_sigma * math.sqrt(sigma**2 - next_sigma**2) / sigma)
    return math.sqrt(next_sigma**2 - up**2), up


def toward(x0: Latent, x: Latent, shrink: float) -> Latent:
    """Shrink the way from x0 to x; shrink = next / sigma solves the flow exactly where the denoiser is constant."""
    return x0 + shrink * (x - x0)


def renoise(x: Latent, deviation: float, noise: NoiseSource) -> Latent:
    """Add fresh noise of the given deviation, drawing none where it is 0."""
    return x + deviation * noise.next() if deviation > 0 else x
