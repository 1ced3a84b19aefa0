#!/usr/bin/env bash
# diffusers 0.42.1: with KDPM2DiscreteScheduler, inpainting keeps its surroundings at another noise level than the network is told.
#
# StableDiffusionInpaintPipeline (with a U-Net of four channels) puts the given picture back around the mask after each step(), with
# the noise that add_noise() adds for the next timestep. A step of DPM2 is two calls of the network, the second at a level between
# two of the schedule: there what is masked has that middle level, and is scaled and told as of it, and add_noise() takes the
# end of the step for it. With 10 steps the surroundings have noise of 7.84 where 10.7 is told, and 0.029 where 0.104 is: 0.28 to
# 0.83 of it, in every second call, beside a masked part that has all. Heun, whose second call is at the step's end, Euler,
# and KDPM2AncestralDiscreteScheduler, whose middle is its end, are right. Seen: 30 November 2026.
# What reverie does: what surrounds a mask gets the noise of each level that is asked (`hold_known` in diffusion/guidance.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PICTURE, NOISE = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)


def levels(make, begin: int | None) -> list[tuple[float, float]]:
    """Walk as the pipeline does; give for each later call the noise of the surroundings, and the level that it is scaled for."""
    scheduler, found = make(**BETAS), []
    scheduler.set_timesteps(10)
    if begin is not None:
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps
    x = NOISE * scheduler.init_noise_sigma
    for place, t in enumerate(timesteps):
        scale = (scheduler.scale_model_input(x, t) / x).mean()  # 1 / sqrt(sigma^2 + 1)
        if place:
            found.append((around.mean().item(), (1 / scale**2 - 1).sqrt().item()))
        x = scheduler.step(NOISE, t, x).prev_sample
        if place + 1 < len(timesteps):
            around = scheduler.add_noise(PICTURE, NOISE, torch.tensor([timesteps[place + 1]]))
            x = torch.where(torch.arange(8) < 4, around, x)  # the mask covers the right half
    return found


makers = EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
found = {}
for make in makers:
    for begin in (0, None):
        pairs = levels(make, begin)
        found[make] = [around / told for around, told in pairs]
        if make in makers[:3]:
            assert all(abs(part - 1) < 1e-3 for part in found[make]), f"{make.__name__} is noised for another level too"
        else:
            assert all(abs(part - 1) < 1e-3 for part in found[make][1::2]), "the ends of steps are noised for another level"
            assert all(part < 0.85 for part in found[make][::2]), "the middles of steps are noised for their own level now"
print("diffusers", diffusers.__version__, "DPM2, noise of the surroundings in parts of what is told:")
print([round(part, 3) for part in found[KDPM2DiscreteScheduler]], "(noise, told):", [(round(a, 3), round(b, 3)) for a, b in pairs])
PY
