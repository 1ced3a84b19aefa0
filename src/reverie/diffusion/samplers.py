"""Samplers of one step (Euler, Heun, DPM-Solver-2 and kin) and of several (LMS, PLMS, DPM++ 2M and 3M, UniPC), by name.

A sampler is a generator over `(denoise, x, sigmas, noise)` that yields a `Step` for each interval of sigmas; the result
is the last `Step.x`. Start it with

    x = to_ve(noise.initial(), sigmas[0])      # pure noise: the network sees it with unit variance
    x = x0 + sigmas[0] * noise.initial()       # an image, noised

and end with to_vp(x, sigmas[-1]), which is x itself wherever sigmas end at 0. Options are bound with functools.partial:
`partial(SAMPLERS["ddim"], eta=0.5)`. Samplers keep no gradient from flowing; run them under torch.inference_mode().

`eta` scales the noise that a step takes out and puts back: 0 follows the deterministic flow, 1 is fully ancestral.
Noise is drawn afresh for each step, not read off one Brownian path, so stochastic results depend on the step count.
Those of several steps ask the denoiser once a step (PLMS twice in its first) and gain order from `past`, which every
Step carries on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from reverie.diffusion.denoiser import Denoise
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


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = ()) -> Iterator[Step]:
    """Sample with pseudo linear multistep: DDIM steps along an Adams-Bashforth mean of the last four eps.

    The weights suit equal steps in t; the first step is Heun's (Liu et al. 2202.09778; CompVis: plms.py).
    """
    for at in intervals(sigmas):
        now = Point(at.sigma, x, denoise(x, at.sigma))
        weights = ADAMS_BASHFORTH[min(len(past), 3)]
        points = (*past, now)[-len(weights) :]
        eps = sum(w * point.slope for w, point in zip(weights, reversed(points), strict=True))
        if not past and at.next > 0:
            ahead = x + (at.next - at.sigma) * eps
            eps = (eps + Point(at.next, ahead, denoise(ahead, at.next)).slope) / 2
        x, past = x + (at.next - at.sigma) * eps, (*past, now)[-3:]
        yield at.step(x, now.x0, past)


def lms(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, order: int = 4
) -> Iterator[Step]:
    """Sample with linear multistep: integrate the polynomial through the last slopes, order at most 4 (k-diffusion)."""
    for at in intervals(sigmas):
        now = Point(at.sigma, x, denoise(x, at.sigma))
        points = (*past, now)[-order:]
        weights = lagrange_integrals([point.sigma for point in points], at.sigma, at.next)
        x = x + sum(w * point.slope for w, point in zip(weights, points, strict=True))
        past = points[-(order - 1) :] if order > 1 else ()
        yield at.step(x, now.x0, past)


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integrate each Lagrange basis polynomial of at most 4 nodes; the 2-point Gauss rule is exact up to cubics."""
    middle, half = (start + end) / 2, (end - start) / 2
    at = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [half * sum(math.prod((s - n) / (m - n) for n in nodes if n != m) for s in at) for m in nodes]


def dpmpp_2m(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, eta: float = 0.0
) -> Iterator[Step]:
    """Sample with DPM-Solver++(2M): x0 extrapolated to the middle of the step (Lu et al. 2211.01095, alg. 2).

    eta = 1 is the SDE solver, midpoint variant (k-diffusion: sample_dpmpp_2m_sde). A step to 0 takes x0 as it is.
    """
    for at in intervals(sigmas):
        x0 = middle = denoise(x, at.sigma)
        if past and at.next > 0:
            h, h_last = -math.log(at.ratio), math.log(past[-1].sigma / at.sigma)
            middle = x0 + h / (2 * h_last) * (x0 - past[-1].x0)
        past = (Point(at.sigma, x, x0),)
        x = renoise(toward(middle, x, at.ratio ** (1 + eta)), at.next * math.sqrt(1 - at.ratio ** (2 * eta)), noise)
        yield at.step(x, x0, past)


def dpmpp_3m(
    denoise: Denoise, x: Latent, sigmas: Sigmas, noise: NoiseSource, past: Past = (), *, eta: float = 0.0
) -> Iterator[Step]:
    """Sample with DPM-Solver++(3M): x0 follows the parabola in log sigma through its last three (Lu et al. 2211.01095).

    eta = 1 is the SDE solver (k-diffusion: sample_dpmpp_3m_sde). A step to 0 takes x0 as it is.
    """
    for at in intervals(sigmas):
        now = Point(at.sigma, x, denoise(x, at.sigma))
        points = (*past, now)[-3:]
        x = toward(now.x0, x, at.ratio ** (1 + eta))
        if at.next > 0:
            x = x + _curvature(points, -math.log(at.ratio), eta)
        x, past = renoise(x, at.next * math.sqrt(1 - at.ratio ** (2 * eta)), noise), points[-2:]
        yield at.step(x, now.x0, past)


def _curvature(points: Past, h: float, eta: float) -> Latent | float:
    """Give what slope and bend of x0, in log-SNR/2, add to a step of length h that starts at the last of points.

    With k = (1 + eta) h they add phi_2 h slope + phi_3 h^2 bend, phi_2 = 1 - (1 - exp(-k))/k, phi_3 = 1/2 - phi_2/k.
    The bend is a divided difference, half the second derivative that phi_3 asks for: so it stands in the authors' code
    and in k-diffusion, and so it stays, at the price of the third order.
    """
    if len(points) == 1:
        return 0.0
    k = (1 + eta) * h
    phi_2 = 1 + math.expm1(-k) / k
    phi_3 = 0.5 - phi_2 / k
    *earlier, last, now = points
    slope = (now.x0 - last.x0) / math.log(last.sigma / now.sigma)
    if not earlier:
        return phi_2 * h * slope
    first = earlier[0]
    bend = slope - (last.x0 - first.x0) / math.log(first.sigma / last.sigma)
    bend = bend / math.log(first.sigma / now.sigma)
    slope = slope + math.log(last.sigma / now.sigma) * bend
    return phi_2 * h * slope + phi_3 * h**2 * bend


def bh1(h: float) -> float:
    """Give the lone weight of UniPC's variant B1(h) = h, as a share of the step: h / 2 (1 - exp(-h))."""
    return -h / (2 * math.expm1(-h))


def bh2(h: float) -> float:
    """Give the lone weight of UniPC's variant B2(h) = exp(h) - 1, as a share of the step: 1/2."""
    return 0.5


def unipc(
    denoise: Denoise,
    x: Latent,
    sigmas: Sigmas,
    noise: NoiseSource,
    past: Past = (),
    *,
    order: int = 2,
    variant: Callable[[float], float] = bh2,
) -> Iterator[Step]:
    """Sample with UniPC: each evaluation first corrects the step that led to it (Zhao et al. 2302.04867).

    The predictor's order falls to 1 towards the end, as in the authors' lower_order_final; the corrector adds one more.
    `variant` gives the weight where there is but one, `bh1` or `bh2`; several follow from their equations.
    """
    for at in intervals(sigmas):
        x0 = denoise(x, at.sigma)
        left = at.total - at.index
        if past:
            corrector_order = min(order, len(past), left + 1)
            x = _unipc(past[-1], (*past[-corrector_order:-1], Point(at.sigma, x, x0)), at.sigma, variant)
        now = Point(at.sigma, x, x0)
        predictor_order = min(order, len(past) + 1, left)
        x = _unipc(now, past[len(past) + 1 - predictor_order :], at.next, variant)
        past = (*past, now)[-order:]
        yield at.step(x, x0, past)


def _unipc(base: Point, others: Sequence[Point], end: float, variant: Callable[[float], float]) -> Latent:
    """Step from base to the level end, bending x0 towards the other points (Zhao et al. 2302.04867).

    The exact step takes the mean of x0(s) over s, the fraction of the step in log-SNR/2, under the weight exp(s h). The
    weights w_k of the differences (x0_k - x0) / s_k make it so for polynomials: sum_k w_k s_k^(n-1) = E[s^n]. A lone
    weight is 1/2 or near it, the limit at h = 0, which the paper shows to suffice.
    """
    mean = base.x0
    if others:
        h = math.log(base.sigma / end)
        places = [math.log(base.sigma / other.sigma) / h for other in others]
        for weight, place, other in zip(_weights(places, h, variant), places, others, strict=True):
            mean = mean + weight / place * (other.x0 - base.x0)
    return toward(mean, base.x, end / base.sigma)


def _weights(places: Sequence[float], h: float, variant: Callable[[float], float]) -> list[float]:
    """Solve sum_k w_k s_k^(n-1) = E[s^n], n = 1, 2, ...; by parts, E[s^n] = 1/(1 - exp(-h)) - n/h E[s^(n-1)]."""
    if len(places) == 1:
        return [variant(h)]
    moments = [1.0]
    for n in range(1, len(places) + 1):
        moments.append(-1 / math.expm1(-h) - n / h * moments[-1])
    powers = [[place**n for place in places] for n in range(len(places))]
    left, right = torch.tensor(powers, dtype=torch.float64), torch.tensor(moments[1:], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(left, right).tolist()
    return weights


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
