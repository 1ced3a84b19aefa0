#!/usr/bin/env bash
# diffusers 0.42.1: DDIMScheduler with timestep_spacing="linspace" steps to other levels than those it asks the network at.
#
# Its timesteps go from 999 to 0 in even parts, 111 apart for 10 steps; but step() goes 1000 // 10 = 100 down from each. So the
# latents that the network is told are of timestep 888 have the noise of 899, and those of 0 the noise of 11. Where the network
# knows the noise to the bit, 0.2165 of it is left in the picture after 10 steps, 0.1206 after 20 and 0.0569 after 50, instead of
# the 0.0292 that DDIM ends at in Stable Diffusion (set_alpha_to_one=False). "trailing" errs by one timestep where the steps do
# not divide 1000: 0.0439 after 30. "leading" does not err, and DPMSolverMultistepScheduler walks "linspace" as it says; "linspace" is
# that one's default, so DDIM has it where it reads what a pipeline with that one saved. Seen: 30 November 2026.
# What reverie does: DDIM steps from each level to the next that it asks at, in every schedule (diffusion/samplers.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import tempfile

import diffusers, torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {"clip_sample": False, "set_alpha_to_one": False}


def left(scheduler, steps: int) -> float:
    """Tell how much noise is left where the network predicts what was added."""
    scheduler.set_timesteps(steps)
    noise = torch.ones(1, 4, 8, 8)
    x = noise * (1 - scheduler.alphas_cumprod[int(scheduler.timesteps[0])]) ** 0.5
    for t in scheduler.timesteps:
        x = scheduler.step(noise, t, x).prev_sample
    return round(x.mean().item(), 4)


found = {spacing: [left(DDIMScheduler(**BETAS, **DDIM, timestep_spacing=spacing), steps) for steps in (10, 20, 30, 50)]
         for spacing in ("leading", "trailing", "linspace")}
solver = DPMSolverMultistepScheduler(**BETAS)
with tempfile.TemporaryDirectory() as folder:
    solver.save_pretrained(folder)
    read = DDIMScheduler.from_pretrained(folder).config.timestep_spacing
after = left(solver, 10)
print("diffusers", diffusers.__version__, "noise left by DDIM after 10, 20, 30 and 50 steps", found)
print("by a DPM-Solver after 10:", after, "| spacing of DDIM as read from that one's folder:", read)
assert found["leading"] == [0.0292] * 4 and abs(after) < 1e-3 and read == "linspace"
assert found["linspace"] == [0.2165, 0.1206, 0.0984, 0.0569], "linspace leaves another part of the noise"
assert found["trailing"] == [0.0292, 0.0292, 0.0439, 0.0292], "trailing leaves another part of the noise"
PY
