"""Spacings: the noise levels that a sampler of so many steps visits, (schedule, steps) -> sigmas [steps + 1], falling.

All end at 0 but `ddim` and `tcd`, which end at the first timestep as their authors do, and those of AUTOMATIC1111,
which end where it does and may have other than [steps + 1] levels, as `ddim_uniform` has. The result is float64 on the
CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Real
from torch import Tensor

from reverie.diffusion.schedule import Schedule
from reverie.diffusion.step import Sigmas
from reverie.errors import ReverieError

Spacing = Callable[[Schedule, int], Sigmas]


def normal(schedule: Schedule, steps: int) -> Sigmas:
    """Space t evenly from the last timestep to the first, fractions included (k-diffusion: get_sigmas)."""
    return visit(schedule, _ramp(len(schedule) - 1, 0, _check(steps)))


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Sigmas:
    """Space sigma^(1 / rho) evenly (Karras et al. 2206.00364, eq. 5)."""
    return _end(_ramp(schedule.sigma_max ** (1 / rho), schedule.sigma_min ** (1 / rho), _check(steps)) ** rho)


def exponential(schedule: Schedule, steps: int) -> Sigmas:
    """Space log sigma evenly (k-diffusion: get_sigmas_exponential)."""
    return _end(_ramp(math.log(schedule.sigma_max), math.log(schedule.sigma_min), _check(steps)).exp())


def sgm_uniform(schedule: Schedule, steps: int) -> Sigmas:
    """Space t evenly as if for one step more, and leave out the last (Stability's generative-models; ComfyUI)."""
    return visit(schedule, _ramp(len(schedule) - 1, 0, _check(steps) + 1)[:-1])


def linspace(schedule: Schedule, steps: int) -> Sigmas:
    """Space t evenly from the last timestep to the first, rounded (Lin et al. 2305.08891, table 2)."""
    return visit(schedule, _ramp(len(schedule) - 1, 0, _check(steps, len(schedule))).round())


def leading(schedule: Schedule, steps: int) -> Sigmas:
    """Visit t = 1, 1 + r, 1 + 2r, ... from above, r = timesteps // steps (2305.08891, table 2; CompVis's offset 1).

    50 steps visit 981, 961, ..., 1. A single step starts from the last timestep: at t = 1 there is hardly any noise.
    """
    stride = len(schedule) // _check(steps, len(schedule) - 1)
    t = 1 + stride * torch.arange(steps - 1, -1, -1)
    return visit(schedule, t if steps > 1 else torch.tensor([len(schedule) - 1]))


def trailing(schedule: Schedule, steps: int) -> Sigmas:
    """Visit every (timesteps / steps)-th t, the last timestep being the first visited (2305.08891, table 2)."""
    ramp = _ramp(len(schedule), 0, _check(steps, len(schedule)) + 1)[:-1]
    return visit(schedule, ramp.round() - 1)


def ddim(schedule: Schedule, steps: int) -> Sigmas:
    """Visit the timesteps of `leading` and end on alpha_bar[0], not on 1 (CompVis: ddim.py; set_alpha_to_one=False).

    The result keeps that little noise; `to_vp(x, sigmas[-1])` is the latent that CompVis returns.
    """
    sigmas = leading(schedule, steps)
    return torch.cat([sigmas[:-1], schedule.sigmas[:1]])


def lcm(schedule: Schedule, steps: int, distilled: int = 50) -> Sigmas:
    """Visit some of the `distilled` trailing timesteps a consistency model was trained on (Luo et al. 2310.04378)."""
    trained = trailing(schedule, distilled)
    return _end(trained[torch.arange(_check(steps, distilled)) * distilled // steps])


def tcd(schedule: Schedule, steps: int, distilled: int = 50) -> Sigmas:
    """Visit the timesteps of `lcm` and end on alpha_bar[0], not on 1 (diffusers: TCDScheduler)."""
    return torch.cat([lcm(schedule, steps, distilled)[:-1], schedule.sigmas[:1]])


def simple(schedule: Schedule, steps: int) -> Sigmas:
    """Visit the levels at len - 1 - int(k len / steps), k = 0 to steps - 1 (ComfyUI: samplers.py, simple_scheduler)."""
    k = torch.arange(_check(steps, len(schedule)), dtype=torch.float64)
    return visit(schedule, len(schedule) - 1 - (k * (len(schedule) / steps)).floor())


def ddim_uniform(schedule: Schedule, steps: int) -> Sigmas:
    """Visit t = 1, 1 + r, ... from above, r = timesteps // steps, as many as there are: 31 for 30 (ComfyUI)."""
    return _end(_strided_levels(schedule, steps))


# The levels of 10 steps that were optimised for SD 1.5 and for SDXL (the authors' page, AlignYourSteps/howto.html).
ALIGNED = (
    *(14.6146412293, 6.4745760956, 3.8636745985, 2.694615152, 1.8841921177, 1.3943805092, 0.9642583904, 0.6523686016),
    *(0.3977456272, 0.1515232662, 0.0291671582),
)
ALIGNED_XL = (
    *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289, 0.3798540708),
    *(0.2332364134, 0.1114188177, 0.0291671582),
)


def align_your_steps(schedule: Schedule, steps: int, *, levels: Sequence[float] = ALIGNED) -> Sigmas:
    """Visit the levels optimised for 10 steps, or between them in log sigma, the last as 0 (Sabour et al. 2404.14507).

    They are those of Stable Diffusion's schedule, whatever the model's is; the last is as in ComfyUI and diffusers.
    """
    return _between(torch.tensor(levels, dtype=torch.float64), steps)


# Of 101 timesteps from the last (0) to the first (100), those that 2 to 20 steps visit.
SEARCHED = tuple(
    tuple(map(int, f"0 {row} 100".split()))
    for row in (
        "71",
        "51 82",
        "39 67 89",
        "34 58 79 94",
        "17 43 66 85 97",
        "17 38 58 77 92 99",
        "17 38 55 71 85 94 99",
        "17 34 50 66 79 89 96 99",
        "17 34 49 62 73 83 91 96 99",
        "17 33 46 58 70 79 87 93 97 99",
        "17 32 44 55 66 75 83 89 94 97 99",
        "14 29 39 51 62 71 79 85 90 94 97 99",
        "14 29 38 50 60 69 77 83 88 92 95 97 99",
        "12 22 32 42 52 62 70 77 83 88 92 95 97 99",
        "12 22 32 42 52 62 70 77 83 87 91 94 96 98 99",
        "12 22 32 42 52 62 70 77 83 87 90 93 95 97 98 99",
        "12 22 32 41 50 59 67 74 80 85 89 92 94 96 97 98 99",
        "12 22 32 41 50 58 66 73 79 84 88 91 93 95 96 97 98 99",
        "12 22 32 41 50 58 66 73 79 83 87 90 92 94 95 96 97 98 99",
    )
)


def gits(schedule: Schedule, steps: int) -> Sigmas:
    """Visit the levels that a search along sampling trajectories chose (GITS, Chen et al. 2405.11326), the last as 0.

    They are those of coefficient 1.20, found with SD 1.5, on the model's own schedule. More than 20 steps go between
    those of 20 in log sigma, as in ComfyUI (comfy_extras/nodes_gits.py, whose table is the authors').
    """
    chosen = SEARCHED[min(max(_check(steps), 2), len(SEARCHED) + 1) - 2]
    t = (len(schedule) - 1) * (1 - torch.tensor(chosen, dtype=torch.float64) / 100)
    return _between(schedule.t_to_sigma(t), steps)


def _between(levels: Float[Tensor, " n"], steps: int) -> Sigmas:
    """Visit given levels, or as many between them, evenly in log sigma; 0 takes the place of the last."""
    logs, places = levels.log(), _ramp(0, len(levels) - 1, _check(steps) + 1)
    low = places.floor().long().clamp(max=len(levels) - 2)
    return _end(torch.lerp(logs[low], logs[low + 1], places - low).exp()[:-1])


def a1111_ddim(schedule: Schedule, steps: int) -> Sigmas:
    """Visit the timesteps of `ddim_uniform` and stop at t = 1 (stable-diffusion-webui: sd_samplers_timesteps.py)."""
    sigmas = _strided_levels(schedule, steps)
    if len(sigmas) == 1:
        raise ReverieError(f"{steps} step leaves nothing to walk with this spacing; give 2 or more")
    return sigmas


def a1111_unipc(schedule: Schedule, steps: int) -> Sigmas:
    """Space t evenly from the last timestep to the first and stop there, in as many steps as `ddim_uniform` has.

    That is UniPC's time_uniform as stable-diffusion-webui calls it (sd_samplers_timesteps_impl.py, unipc).
    """
    return schedule.t_to_sigma(_ramp(len(schedule) - 1, 0, len(_strided_levels(schedule, steps)) + 1))


def a1111_lcm(schedule: Schedule, steps: int, distilled: int = 50) -> Sigmas:
    """Space evenly over the `distilled` timesteps, linear in log sigma between them: 999, 672.3, 345.7, 19 for 4 steps.

    Source: stable-diffusion-webui: sd_samplers_lcm.py, LCMCompVisDenoiser.get_sigmas.
    """
    trained = Schedule(schedule.alphas_cumprod[len(schedule) // distilled - 1 :: len(schedule) // distilled])
    return normal(trained, steps)


def _strided_levels(schedule: Schedule, steps: int) -> Sigmas:
    stride = len(schedule) // _check(steps, len(schedule) - 1)
    return schedule.t_to_sigma((1 + torch.arange(0, len(schedule), stride)).clamp(max=len(schedule) - 1).flip(0))


def _check(steps: int, most: int | None = None) -> int:
    if steps < 1 or (most is not None and steps > most):
        allowed = "1 or more" if most is None else f"1 to {most}, or choose karras for any number"
        raise ReverieError(f"{steps} steps do not fit this spacing; give {allowed}")
    return steps


def _ramp(first: float | int, last: float | int, count: int) -> Float[Tensor, " count"]:
    return torch.linspace(first, last, count, dtype=torch.float64)


def visit(schedule: Schedule, t: Real[Tensor, " steps"]) -> Sigmas:
    """Visit given timesteps, falling, and end at 0."""
    return _end(schedule.t_to_sigma(t))


def _end(sigmas: Float[Tensor, " steps"]) -> Sigmas:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


SPACINGS: dict[str, Spacing] = {
    "normal": normal,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "ddim": ddim,
    "lcm": lcm,
    "tcd": tcd,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "align_your_steps": align_your_steps,
    "align_your_steps_xl": partial(align_your_steps, levels=ALIGNED_XL),
    "gits": gits,
    "a1111_ddim": a1111_ddim,
    "a1111_unipc": a1111_unipc,
    "a1111_lcm": a1111_lcm,
}
