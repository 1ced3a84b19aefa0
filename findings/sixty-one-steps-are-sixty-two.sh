#!/usr/bin/env bash
# diffusers 0.42.1: with timestep_spacing="trailing", 61 steps are 62, and the last asks the network at timestep -1.
#
# numpy.arange(1000, 0, -1000 / steps) makes the list, and where 1000 / steps is a float a little too small, it has one number
# more, a hair above 0: rounded and less 1 that is -1. Of the numbers of steps up to 100 it is 61 alone, of those up to 200 also
# 103, 121 and 122; of those to 1000 there are 62. Euler, Euler ancestral, LMS, DPM-Solver and UniPC walk it: the levels get
# 0.0292 more at their end, and the network an embedding of -1 that it was never trained on; Heun asks twice. DDIM takes
# alphas_cumprod[-1], the level of pure noise, for that of -1: its last step ends at -14.1 where the clean latents are 0. Seen: 30
# November 2026.
# What reverie does: `--steps 61` are 61 timesteps in every schedule that takes so many (diffusion/spacings.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, LMSDiscreteScheduler, DPMSolverMultistepScheduler,
         UniPCMultistepScheduler, DDIMScheduler)


def timesteps(kind: type, steps: int, spacing: str = "trailing") -> list[int]:
    scheduler = kind(**BETAS, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


def left(steps: int) -> float:
    """Give DDIM's latents at the end where the clean ones are 0 and the network knows the noise to the bit."""
    scheduler = DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(steps)
    noise = torch.ones(1, 4, 8, 8)
    x = scheduler.add_noise(0 * noise, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(noise, t, x).prev_sample
    return round(x.mean().item(), 2)


longer = [steps for steps in range(1, 201) if len(timesteps(EulerDiscreteScheduler, steps)) != steps]
last = {kind.__name__: (len(found := timesteps(kind, 61)), found[-2:]) for kind in KINDS}
others = {spacing: len(timesteps(EulerDiscreteScheduler, 61, spacing)) for spacing in ("leading", "linspace")}
print("diffusers", diffusers.__version__, "counts up to 200 that grow:", longer, "| of 61 steps, count and last two:", last, others)
print("DDIM's latents after 60, 61 and 62 steps:", ended := [left(steps) for steps in (60, 61, 62)])
assert longer == [61, 103, 121, 122] and set(others.values()) == {61}, "other counts grow, or none"
assert all(count == 62 and ends == [15, -1] for count, ends in last.values()), "61 steps are 61 now"
assert max(abs(ended[0]), abs(ended[2])) < 0.1 and ended[1] < -10, "DDIM takes another level for timestep -1"
PY
