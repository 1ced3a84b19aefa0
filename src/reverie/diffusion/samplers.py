"""Samplers: those of one step (Euler, Heun, DPM-Solver-2 and kin), and the table of all; multistep.py has the others.

A sampler is a generator over `(denoise, x, sigmas, noise)` that yields a `Step` for each interval of sigmas; the result
is the last `Step.x`. Start it with

    x = to_ve(noise.initial(), sigmas[0])      # pure noise: the network sees it with unit variance
    x = x0 + sigmas[0] * noise.initial()       # an image, noised

and end with to_vp(x, sigmas[-1]), which is x itself wherever sigmas end at 0. Options are bound with functools.partial:
`partial(SAMPLERS["ddim"], eta=0.5)`. Samplers keep no gradient from flowing; run them under torch.inference_mode().

`eta` scales the noise that a step takes out and puts back: 0 follows the deterministic flow, 1 is fully ancestral.
Noise is drawn afresh for each step, not read off one Brownian path, so stochastic results depend on the step count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from reverie.diffusion.denoiser import Denoise
from reverie.diffusion.multistep import bh1, dpmpp_2m, dpmpp_3m, lms, plms, unipc
from reverie.diffusion.schedule import Schedule, scaled_linear
from reverie.diffusion.step import (
    Latent,
    NoiseSource,
    Past,
    Point,
    Sampler,
    Sigmas,
    Step,
    ancestral,
    intervals,
    renoise,
    toward,
)
from reverie.requests.samplers import RECORDS


def euler(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, eta: float = 0.0
) -> Iterator[Step]:
    """Sample with Euler's method, which in this frame is four samplers under one formula.

    eta = 0 is Euler and DDIM; any eta is DDIM's eq. 12 (Song et al. 2010.02502): x0 + sqrt(next^2 - up^2) eps + up z;
    eta = 1 is Euler ancestral (k-diffusion) and DDPM with the posterior variance (Ho et al. 2006.11239, eq. 7).
    """
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        down, up = ancestral(at.sigma, at.next, eta)
        x = renoise(toward(x0, x, down / at.sigma), up, noise)
        yield at.step(x, x0)


def heun(denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = ()) -> Iterator[Step]:
    """Sample with Heun's trapezoidal rule, two evaluations a step, second order (Karras et al. 2206.00364, alg. 1)."""
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        slope = Point(at.sigma, x, x0).slope
        if at.next > 0:
            ahead = x + (at.next - at.sigma) * slope
            slope = (slope + Point(at.next, ahead, denoise(ahead, at.next)).slope) / 2
        x = x + (at.next - at.sigma) * slope
        yield at.step(x, x0)


def dpm2(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, eta: float = 0.0
) -> Iterator[Step]:
    """Sample with the midpoint rule in log sigma, two evaluations a step (DPM-Solver-2, Lu et al. 2206.00927).

    As in k-diffusion the step is then linear in sigma; eta = 1 is its DPM2 ancestral.
    """
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        down, up = ancestral(at.sigma, at.next, eta)
        slope, middle = Point(at.sigma, x, x0).slope, math.sqrt(at.sigma * down)
        if middle > 0:
            halfway = x + (middle - at.sigma) * slope
            slope = Point(middle, halfway, denoise(halfway, middle)).slope
        x = renoise(x + (down - at.sigma) * slope, up, noise)
        yield at.step(x, x0)


def dpmpp_2s(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, eta: float = 0.0
) -> Iterator[Step]:
    """Sample with DPM-Solver++(2S): the x0 of the midpoint serves the whole step (Lu et al. 2211.01095, alg. 1).

    eta = 1 is k-diffusion's DPM++ 2S ancestral.
    """
    for at in intervals(sigmas):
        x0 = x0_middle = denoise(x, at.sigma)
        down, up = ancestral(at.sigma, at.next, eta)
        middle = math.sqrt(at.sigma * down)
        if middle > 0:
            x0_middle = denoise(toward(x0, x, middle / at.sigma), middle)
        x = renoise(toward(x0_middle, x, down / at.sigma), up, noise)
        yield at.step(x, x0)


def dpmpp_sde(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, eta: float = 1.0
) -> Iterator[Step]:
    """Sample with DPM++ SDE: 2S whose midpoint is noisy as well, r = 1/2 (k-diffusion: sample_dpmpp_sde).

    The midpoint's noise is the first part of the step's, as increments of one Brownian path in sigma are.
    """
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        if at.next > 0:
            first, second = noise.next(), noise.next()
            middle = math.sqrt(at.sigma * at.next)
            down, up = ancestral(at.sigma, middle, eta)
            x0_middle = denoise(toward(x0, x, down / at.sigma) + up * first, middle)
            share = (at.sigma - middle) / (at.sigma - at.next)
            down, up = ancestral(at.sigma, at.next, eta)
            x = toward(x0_middle, x, down / at.sigma)
            x = x + up * (math.sqrt(share) * first + math.sqrt(1 - share) * second)
        else:
            x = x0
        yield at.step(x, x0)


STABLE_DIFFUSION = scaled_linear()


def tcd(
    denoise: Denoise,
    x: Latent,
    sigmas: Sigmas,
    noise: NoiseSource,
    past: Past = (),
    *,
    eta: float = 0.3,
    schedule: Schedule = STABLE_DIFFUSION,
) -> Iterator[Step]:
    """Sample a trajectory consistency model by strategic stochastic sampling (Zheng et al. 2402.19159, alg. 4).

    A step goes along the trajectory to the timestep (1 - eta) t, rounded down, below the t that it is to reach, and is
    noised up to it; eta is the paper's gamma. `schedule` tells the timesteps of noise levels. The last step is not
    noised: it ends at the first timestep, or at 0 where sigmas do.
    """
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        down = at.next
        if eta > 0 and at.index < at.total - 1:
            t = (1 - eta) * round(schedule.sigma_to_t(at.next).item(), 4)
            down = min(down, schedule.t_to_sigma(float(math.floor(t))).item())
        x = renoise(toward(x0, x, down / at.sigma), math.sqrt(at.next**2 - down**2), noise)
        yield at.step(x, x0)


def lcm(denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = ()) -> Iterator[Step]:
    """Sample a consistency model: jump to x0, noise it to the next level, repeat (Luo et al. 2310.04378).

    The boundary condition of the paper belongs to the denoiser: `consistency` in guidance.py.
    """
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        x = renoise(x0, at.next, noise)
        yield at.step(x, x0)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(euler, eta=1.0),
    "ddim": euler,
    "plms": plms,
    "euler": euler,
    "euler_ancestral": partial(euler, eta=1.0),
    "heun": heun,
    "dpm2": dpm2,
    "dpm2_ancestral": partial(dpm2, eta=1.0),
    "lms": lms,
    "dpmpp_2s_ancestral": partial(dpmpp_2s, eta=1.0),
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": partial(dpmpp_2m, eta=1.0),
    "dpmpp_3m_sde": partial(dpmpp_3m, eta=1.0),
    "unipc": unipc,
    "unipc_bh1": partial(unipc, order=3, variant=bh1),
    "unipc_bh2": partial(unipc, order=3),
    "lcm": lcm,
    "tcd": tcd,
}


def pick_sampler(name: str, schedule: Schedule, eta: float | None = None) -> Sampler:
    """Return a sampler by name, for a model of a schedule; an eta of None is its own."""
    options: dict[str, Any] = {} if eta is None else {"eta": eta}
    if RECORDS[name].by_timestep:
        options["schedule"] = schedule
    return partial(SAMPLERS[name], **options)
