#!/usr/bin/env bash
# diffusers 0.42.1: PNDMScheduler, which Stable Diffusion 1 is published with, leaves noise where image to image starts it.
#
# Its timesteps name the second one twice, as its first step is taken in two halves: a try, then the same step from the same
# latents by the mean of both slopes. Image to image cuts its part off that list, without the double, but the scheduler counts
# from 0 all the same: it takes its second timestep for the second half, goes back to where it began, and from then on the latents
# are one step behind what the network is told. Where the network knows the noise to the bit, 0.0766 of it is left after 20 steps
# at strength 0.8, 0.1049 at 0.5 and 0.1835 after 10 at 0.5, instead of the 0.0292 that a whole run ends at, and DDIM always.
# Seen: 30 November 2026.
# What reverie does: PLMS begins wherever it starts with its own first step, so no level is skipped (diffusion/multistep.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import DDIMScheduler, PNDMScheduler

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False}


def left(scheduler, steps: int, strength: float) -> tuple[float, float]:
    """Give the noise left, and by how much the last call's latents are noisier than their timestep says."""
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[steps - int(steps * strength) :]  # as the pipelines cut
    noise = torch.ones(1, 4, 8, 8)
    x = scheduler.add_noise(torch.zeros_like(noise), noise, timesteps[:1])
    for t in timesteps:
        before, x = x, scheduler.step(noise, t, x).prev_sample
    return round(x.mean().item(), 4), round((before.mean() / (1 - scheduler.alphas_cumprod[t]) ** 0.5).item(), 3)


cases = [(20, 1.0), (20, 0.8), (20, 0.5), (10, 0.5), (50, 0.8)]
pndm = [left(PNDMScheduler(**SD1, skip_prk_steps=True), *case) for case in cases]
ddim = [left(DDIMScheduler(**SD1, clip_sample=False), *case) for case in cases]
print("diffusers", diffusers.__version__, "steps and strength", cases, "noise left, and of the last call: PNDM", pndm, "DDIM", ddim)
assert pndm[0] == ddim[0] and ddim == [(0.0292, 1.0)] * len(cases), "a whole run, or DDIM, ends elsewhere"
assert [noise for noise, _ in pndm[1:]] == [0.0766, 0.1049, 0.1835, 0.047], "PNDM leaves another part of the noise"
assert all(noisier > 1.4 for _, noisier in pndm[1:]), "its latents are as noisy as the network is told"
PY
