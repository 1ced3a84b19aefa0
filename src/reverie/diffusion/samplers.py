"""The table of samplers by name; their mathematics is in onestep.py and multistep.py.

A sampler is a generator over `(denoise, x, sigmas, noise)` that yields a `Step` for each interval of sigmas; the result
is the last `Step.x`. Start it with

    x = to_ve(noise.initial(), sigmas[0])      # pure noise: the network sees it with unit variance
    x = x0 + sigmas[0] * noise.initial()       # an image, noised

and end with to_vp(x, sigmas[-1]), which is x itself wherever sigmas end at 0. Options are bound with functools.partial:
`partial(SAMPLERS["ddim"], eta=0.5)`. Samplers keep no gradient from flowing; run them under torch.inference_mode().
"""

from __future__ import annotations

from functools import partial
from typing import Any

from reverie.diffusion.multistep import bh1, dpmpp_2m, dpmpp_3m, lms, plms, unipc
from reverie.diffusion.onestep import dpm2, dpmpp_2s, dpmpp_sde, euler, heun, lcm, tcd
from reverie.diffusion.schedule import Schedule
from reverie.diffusion.step import Sampler
from reverie.requests.samplers import RECORDS

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
