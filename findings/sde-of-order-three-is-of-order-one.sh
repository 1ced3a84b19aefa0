#!/usr/bin/env bash
# diffusers 0.42.1: DPMSolverMultistepScheduler with "sde-dpmsolver++" and solver_order=3 converges as a method of first order.
#
# The third term of its step has a wrong sign: of (1 - e^(-2h) - 2h) / (2h)^2 it takes 1/2 away where 1/2 is to be added, so the
# term goes to -1 for short steps instead of to 0. Where the predicted picture is quadratic in log-SNR and the noise of the steps
# is 0, the end is known: with twice the steps half of the error is left, where order 2, the default, and the plain "dpmsolver++"
# of order 3 leave a quarter (no less, as their first step is of order 1). From 40 steps on order 3 is further off than order 2, at
# 160 five times. k-diffusion's sample_dpmpp_3m_sde has the right sign. Seen: 30 November 2026.
# What reverie does: `dpmpp_3m_sde` is k-diffusion's (docs/measured/samplers.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

COUNTS = (10, 20, 40, 80, 160)


def error(algorithm: str, order: int, steps: int) -> float:
    """Tell how far off a run from zeros ends, one step before the last, where the picture is the square of half the log-SNR."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="sample", algorithm_type=algorithm,
        solver_order=order, use_karras_sigmas=True, final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()[:steps]
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    noise = {"variance_noise": torch.zeros_like(x)} if algorithm.startswith("sde") else {}
    for t, sigma in zip(scheduler.timesteps[:-1], sigmas):
        x = scheduler.step(torch.full_like(x, np.log(sigma) ** 2), t, x, **noise).prev_sample
    speed = 2 if algorithm.startswith("sde") else 1
    first, last = -np.log(sigmas[[0, -1]])
    along = np.linspace(first, last, 100_001)
    exact = np.trapezoid(speed * np.exp(-speed * (last - along)) * along**2, along) / np.hypot(1, sigmas[-1])
    return round(abs(x.item() - float(exact)), 4)


found = {(algorithm, order): [error(algorithm, order, steps) for steps in COUNTS]
         for algorithm in ("dpmsolver++", "sde-dpmsolver++") for order in (2, 3)}
print("diffusers", diffusers.__version__, "errors at", COUNTS, "steps", found)
second, third, plain = found["sde-dpmsolver++", 2], found["sde-dpmsolver++", 3], found["dpmsolver++", 3]
assert 3.5 < second[-2] / second[-1] < 4.5 and 3.5 < plain[-2] / plain[-1] < 4.5, "the others converge in another way"
assert 1.8 < third[-2] / third[-1] < 2.5 and third[-1] > 4 * second[-1], "the third order is one now"
PY
