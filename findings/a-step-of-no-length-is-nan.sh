#!/usr/bin/env bash
# diffusers 0.42.1: DPMSolverMultistepScheduler with final_sigmas_type="sigma_min" and Karras's levels ends in NaN.
#
# Karras's, exponential and beta levels end at the model's lowest one, and "sigma_min" puts the same level after it: the last step
# has no length. Order 3 divides the lengths of steps by it, and the infinite quotients by each other; "heun" of order 2 divides
# 0 by 0. From 15 steps on every picture is NaN, black once decoded, and nothing is said. With fewer the last step is of first
# order, and finite, as it is with final_sigmas_type="zero"; but "dpmsolver", the noise form, takes "sigma_min" alone. The usual
# "midpoint" of order 2 is finite, and its last call of the network does nothing. Without such levels the step has a length.
# Seen: 30 November 2026.
# What reverie does: every walk along levels ends at 0, where the last step is the network's clean picture.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import DPMSolverMultistepScheduler

diffusers.utils.logging.set_verbosity_error()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def sound(steps: int, **options: object) -> int:
    """Count the steps from the first whose latents are finite."""
    scheduler, found = DPMSolverMultistepScheduler(**BETAS, **{"final_sigmas_type": "sigma_min"} | options), []
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x, generator=generator).prev_sample
        found.append(bool(x.isfinite().all()))
    return sum(found)


solvers = {
    "order 3": {"solver_order": 3},
    "heun": {"solver_type": "heun"},
    "noise form of order 3": {"algorithm_type": "dpmsolver", "solver_order": 3},
    "SDE of order 3": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}
last = {f"{name}, {levels}": sound(20, **solver, **{levels: True}) for name, solver in solvers.items() for levels in LEVELS}
few = {steps: sound(steps, use_karras_sigmas=True, solver_order=3) for steps in (10, 14, 15, 50)}
usual = sound(20, use_karras_sigmas=True), sound(20, solver_order=3)
zero = sound(20, use_karras_sigmas=True, solver_order=3, final_sigmas_type="zero")
print("diffusers", diffusers.__version__, "of 20 steps so many are finite:", last, "order 3, by the number of steps:", few)
print("of order 2, and of order 3 without such levels:", usual, "order 3 ending at zero:", zero)
assert usual == (20, 20) and zero == 20, "they end in NaN too"
assert set(last.values()) == {19} and few == {10: 10, 14: 14, 15: 14, 50: 49}, "another step is NaN, or none"
PY
