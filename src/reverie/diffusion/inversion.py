"""Inversion of samplers: the noise that a picture comes from, by DDIM inversion or EDICT, which is exact.

A sampler carries noise down to clean latents; an inversion carries clean latents up to the noise that its own sampler
brings back to them. `INVERTERS` names the pairs. Up and down must visit the same levels and ask the same
denoiser, prompts and guidance included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.denoiser import Denoise
from reverie.diffusion.noise import slerp
from reverie.diffusion.samplers import euler
from reverie.diffusion.schedule import to_ve, to_vp
from reverie.diffusion.step import Interval, Latent, NoiseSource, Past, Point, Sampler, Sigmas, Step, intervals

MIX = 0.93  # of EDICT's two sequences after each step: nearer to 1 they drift apart, nearer to 0.5 rounding grows

Inversion = Callable[[Denoise, Latent, Sigmas], Iterator[Step]]
"""(denoise, x at sigmas[-1], sigmas) -> the steps up to sigmas[0]; `Step.past` is what the sampler needs to return."""


class Inverter(NamedTuple):
    """Pair a way up with the sampler that comes down the same way."""

    up: Inversion
    down: Sampler


@dataclass(frozen=True, eq=False)
class Inverted:
    """Hold the noise that pictures come from: the state at sigmas[0], and what its sampler remembers there."""

    x: Float[Tensor, "b ..."]
    past: Past = ()

    def between(self, other: Inverted, w: float) -> Inverted:
        """Go the fraction w of the great circle to another, each sample on its own.

        One that remembers nothing, as noise that was drawn, counts as remembering its own x: so EDICT begins.
        """
        past = tuple(
            _between(a or _itself(self, b), b or _itself(other, a), w) for a, b in zip_longest(self.past, other.past)
        )
        return Inverted(slerp(self.x, other.x, w), past)


def _itself(state: Inverted, like: Point) -> Point:
    return Point(like.sigma, state.x, state.x)


def _between(a: Point, b: Point, w: float) -> Point:
    return Point(a.sigma, slerp(a.x, b.x, w), slerp(a.x0, b.x0, w))


@torch.no_grad()
def invert(denoise: Denoise, latents: Float[Tensor, "b ..."], sigmas: Sigmas, inverter: Inverter) -> Inverted:
    """Find the noise that `inverter.down(denoise, x, sigmas, noise, past)` turns into clean latents.

    It is computed in float64 where the device has it, whatever the network computes in: EDICT's rounding errors grow by
    1 / MIX^2 a step, and in float32 they would show after fifty.
    """
    wide = torch.float32 if latents.device.type == "mps" else torch.float64
    for step in inverter.up(denoise, to_ve(latents.to(wide), sigmas[-1].item()), sigmas):
        last = step
    return Inverted(last.x, last.past)


def ddim_up(denoise: Denoise, x: Latent, sigmas: Sigmas) -> Iterator[Step]:
    """Undo DDIM's steps, taking the noise seen before a step back for that seen after it (Song et al. 2010.02502, 4.3).

    The step down from x' is x = x' + (next - sigma) eps(x', sigma). The noise is looked for in x, at the level that x'
    will have, as Mokady et al. do (2211.09794, 3.1).
    """
    for index, at in enumerate(_rising(sigmas)):
        eps, x0 = _predict(denoise, x, at.next, at.sigma)
        x = x + (at.sigma - at.next) * eps
        yield Step(index, at.total, at.sigma, x, x0)


def edict(denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = ()) -> Iterator[Step]:
    """Sample with EDICT: two coupled sequences, each stepped by the noise seen in the other (Wallace 2211.12446).

    Every line can be solved for what it changed, so `edict_up` is its exact inverse. The second sequence rides in
    `Step.past`; without a past it starts as a copy of the first. Two evaluations a step; draws no noise.
    """
    pair = (x, past[-1].x if past else x)
    for at in intervals(sigmas):
        a, b = _turn(pair, at)
        eps, _ = _predict(denoise, b, at.sigma, at.sigma)
        a = a + (at.next - at.sigma) * eps
        eps, x0 = _predict(denoise, a, at.next, at.sigma)
        b = b + (at.next - at.sigma) * eps
        a = MIX * a + (1 - MIX) * b
        b = MIX * b + (1 - MIX) * a
        pair = _turn((a, b), at)
        yield at.step(pair[0], x0, (Point(at.next, pair[1], x0),))


def edict_up(denoise: Denoise, x: Latent, sigmas: Sigmas) -> Iterator[Step]:
    """Undo EDICT's steps, line by line from the last to the first; both sequences start as x."""
    pair = (x, x)
    for index, at in enumerate(_rising(sigmas)):
        a, b = _turn(pair, at)
        b = (b - (1 - MIX) * a) / MIX
        a = (a - (1 - MIX) * b) / MIX
        eps, x0 = _predict(denoise, a, at.next, at.sigma)
        b = b + (at.sigma - at.next) * eps
        eps, _ = _predict(denoise, b, at.sigma, at.sigma)
        a = a + (at.sigma - at.next) * eps
        pair = _turn((a, b), at)
        yield Step(index, at.total, at.sigma, pair[0], x0, (Point(at.sigma, pair[1], x0),))


def _rising(sigmas: Sigmas) -> list[Interval]:
    return list(intervals(sigmas))[::-1]


def _turn(pair: tuple[Latent, Latent], at: Interval) -> tuple[Latent, Latent]:
    """Say which sequence goes first: they take turns, counted from the end, so that a resumed sampler agrees."""
    return pair if (at.total - at.index) % 2 else (pair[1], pair[0])


def _predict(denoise: Denoise, x: Latent, level: float, sigma: float) -> tuple[Latent, Latent]:
    """Give the noise, and the x0, that a denoiser told of sigma sees in an x of another level.

    The network sees x with the variance it has: it is brought from its own level to sigma in the frame of the network.
    """
    x = to_ve(to_vp(x, level), sigma) if level != sigma else x
    x0 = denoise(x, sigma)
    return (x - x0) / sigma, x0


INVERTERS: dict[str, Inverter] = {
    "ddim": Inverter(ddim_up, euler),
    "edict": Inverter(edict_up, edict),
}
