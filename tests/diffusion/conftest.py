"""Small problems that the tests of samplers share: a closed-form denoiser, a tiny nonlinear network, counted noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from reverie.diffusion.schedule import Schedule, scaled_linear


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, deviation^2): the denoiser and the probability-flow trajectory are known in closed form."""

    mean: float = 0.7
    deviation: float = 0.5

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x] = (s^2 x + sigma^2 mu) / (s^2 + sigma^2)."""
        s2 = self.deviation**2
        return (s2 * x + sigma**2 * self.mean) / (s2 + sigma**2)

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Carry x from one noise level to another along the exact flow, which scales x - mu as the total deviation."""
        ratio = math.hypot(self.deviation, end) / math.hypot(self.deviation, start)
        return self.mean + (x - self.mean) * ratio


@dataclass
class CountedNoise:
    """Normal noise from one seed, which counts its draws."""

    shape: tuple[int, ...]
    drawn: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(7))

    def next(self) -> Tensor:
        self.drawn += 1
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)


class NoNoise:
    """The noise of a sampler that must draw none."""

    def next(self) -> Tensor:
        raise AssertionError("a deterministic sampler drew noise")


class ToyNetwork:
    """F(x, t): a fixed random convolution under a tanh, with a smooth dependence on t."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(4, 4, 3, 3, generator=generator, dtype=torch.float64) / 4

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        phase = (t.double() / 1000).view(-1, 1, 1, 1)
        mixed = torch.nn.functional.conv2d(x.double(), self.weight, padding=1)
        return torch.tanh(mixed * (1 + phase) + phase).to(x.dtype)


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def network() -> ToyNetwork:
    return ToyNetwork()


@pytest.fixture(scope="session")
def schedule() -> Schedule:
    return scaled_linear()


@pytest.fixture
def no_noise() -> NoNoise:
    return NoNoise()


@pytest.fixture
def make_noise() -> type[CountedNoise]:
    return CountedNoise
