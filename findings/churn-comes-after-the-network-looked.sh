#!/usr/bin/env bash
# diffusers 0.42.1: EulerDiscreteScheduler.step(s_churn=...) adds noise that its network has not seen, and the last stays.
#
# Karras et al. (2206.00364, algorithm 2) raise the noise first and ask the network at the higher level. step() is given the network's
# answer and raises the noise after it: the new noise is taken for picture, the step goes further down than the old answer was
# meant for, and what the last step adds stays in the result. EDMEulerScheduler does alike. With the exact denoiser of
# one point every walk must end at that point, and without churn it does; with s_churn=20 and 20 steps Euler ends in noise of a
# deviation of 0.11 about it, of 0.27 with timestep_spacing="trailing", of 0.029 with v-prediction, and EDM of 0.0035.
# HeunDiscreteScheduler has no such argument. k-diffusion's s_churn is the authors'. Seen: 30 November 2026.
# What reverie does: it has no churn; ancestral samplers add noise after a step, and the next one asks at its level.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
POINT = 0.5


def left(make, churn: float, prediction: str = "epsilon", **options: object) -> float:
    """Walk with the exact denoiser of one point; give the deviation of the result from it."""
    scheduler = make(prediction_type=prediction, **options)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(7)
    x = POINT + scheduler.sigmas[0] * torch.randn(1, 4, 64, 64, generator=generator)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        scaled = scheduler.scale_model_input(x, t)
        if make is EDMEulerScheduler:  # its network answers for the picture that is scaled by c_in, and adds c_skip and c_out
            data = scheduler.config.sigma_data
            kept, raised = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
            answer = (POINT - kept * x) / raised
        else:
            noise = (x - POINT) / sigma
            answer = noise if prediction == "epsilon" else (noise - sigma * POINT) / (sigma**2 + 1) ** 0.5
        x = scheduler.step(answer, t, x, s_churn=churn, generator=generator).prev_sample
    return (x - POINT).square().mean().sqrt().item()


def euler(**options: object) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**BETAS, **options)


plain = {"euler": left(euler, 0.0), "trailing": left(euler, 0.0, timestep_spacing="trailing")}
plain |= {"v": left(euler, 0.0, "v_prediction"), "edm": left(EDMEulerScheduler, 0.0)}
churned = {"euler": left(euler, 20.0), "trailing": left(euler, 20.0, timestep_spacing="trailing")}
churned |= {"v": left(euler, 20.0, "v_prediction"), "edm": left(EDMEulerScheduler, 20.0)}
print("diffusers", diffusers.__version__, "noise that is left without churn:", plain, "with it:", churned)
assert max(plain.values()) < 1e-6, "the walk without churn does not end at the point"
assert churned["euler"] > 0.09 and churned["trailing"] > 0.2, "Euler ends with less noise now"
assert churned["v"] > 0.025 and churned["edm"] > 0.003, "v-prediction or EDM end with less noise now"
PY
