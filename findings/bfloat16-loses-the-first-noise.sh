#!/usr/bin/env bash
# diffusers 0.42.1: DDPMScheduler.add_noise() adds nothing at the lowest timesteps to latents in bfloat16.
#
# It brings alpha_bar to the latents' type before it takes 1 - alpha_bar, and bfloat16 has no number between 0.996 and 1: at the
# timesteps 0 and 1 of Stable Diffusion the noise has the weight 0 instead of 0.029 and 0.041, and at 2 and 5 alike 0.0625
# instead of 0.051 and 0.072. Training in bfloat16 hands it such latents, and a network that is asked there for noise that is
# not in its input can only learn its mean; get_velocity() errs alike. float16 errs by 7%. Give latents and noise in float32, and
# cast the sum. Seen: 29 November 2026.
# What reverie does: weights are computed in float32 and then cast (diffusion/schedule.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import DDPMScheduler

scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
t = torch.tensor([0, 1, 2, 5, 500])
nothing, noise = torch.zeros(len(t), 4, 8, 8), torch.ones(len(t), 4, 8, 8)


def weights(dtype: torch.dtype) -> list[float]:
    """Give the weight of the noise at each timestep, as added and as the velocity's."""
    added = scheduler.add_noise(nothing.to(dtype), noise.to(dtype), t)
    velocity = -scheduler.get_velocity(noise.to(dtype), nothing.to(dtype), t)
    assert torch.equal(added, velocity), "the velocity has another weight"
    return [round(w, 4) for w in added[:, 0, 0, 0].tolist()]


right = [round(w, 4) for w in (1 - scheduler.alphas_cumprod[t]).sqrt().tolist()]
found = {dtype: weights(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
print("diffusers", diffusers.__version__, "timesteps", t.tolist(), "right", right, found)
assert found[torch.float32] == right
assert found[torch.bfloat16][:4] == [0, 0, 0.0625, 0.0625], "the lowest levels are other ones now"
assert abs(found[torch.float16][0] / right[0] - 1) > 0.05, "float16 is right now"
PY
