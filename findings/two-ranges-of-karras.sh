#!/usr/bin/env bash
# diffusers 0.42.1: of one configuration, use_karras_sigmas gives Euler, Heun and LMS another range of noise than DPM solvers.
#
# DPM-Solver, DEIS and UniPC lay Karras's levels between the largest and the smallest of training, as k-diffusion does.
# Euler, Heun and LMS first pick timesteps by timestep_spacing, and lay them between the noise of the first and of the last of
# those: with "leading", which SDXL's own configuration says, the picture begins at 11.0 with 20 steps, 8.4 with 10 and 5.1
# with 5 instead of 14.6; with "trailing" it ends at 0.22, 0.34 and 0.57 instead of 0.029. So the number of steps decides what
# noise a picture begins with. timestep_spacing="linspace" gives all of them the whole range. Seen: 29 November 2026.
# What reverie does: `karras` spans the model's levels for every sampler, and a replay says so (docs/compatibility.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PY'
import diffusers
from diffusers import (
    DEISMultistepScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def ranges(kind: type, spacing: str) -> list[tuple[float, float]]:
    """Give the first and the last level of noise for 5, 10 and 20 steps."""
    found = []
    for steps in (5, 10, 20):
        config = EulerDiscreteScheduler(**SDXL, timestep_spacing=spacing).config
        scheduler = kind.from_config(config, use_karras_sigmas=True)
        scheduler.set_timesteps(steps)
        noisy = [round(level, 2) for level in scheduler.sigmas.tolist() if level > 0]
        found.append((noisy[0], noisy[-1]))
    return found


whole = [(14.61, 0.03)] * 3
narrow = {
    "linspace": whole,
    "leading": [(5.13, 0.04), (8.39, 0.04), (11.03, 0.04)],
    "trailing": [(14.61, 0.57), (14.61, 0.34), (14.61, 0.22)],
}
print("diffusers", diffusers.__version__, "first and last level of 5, 10 and 20 steps")
for spacing, seen in narrow.items():
    for kind in (EulerDiscreteScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler):
        print(spacing, kind.__name__, found := ranges(kind, spacing))
        assert found == seen, f"{kind.__name__} has another range"
    for kind in (DPMSolverMultistepScheduler, DEISMultistepScheduler, UniPCMultistepScheduler):
        print(spacing, kind.__name__, found := ranges(kind, spacing))
        assert found == whole, f"{kind.__name__} has not the whole range"
PY
