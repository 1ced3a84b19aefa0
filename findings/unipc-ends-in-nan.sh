#!/usr/bin/env bash
# diffusers 0.42.1: UniPCMultistepScheduler with solver_type="bh1", or with predict_x0=False, gives NaN at its last step.
#
# The last step goes to no noise at all (final_sigmas_type "zero", the default), so its length in log-SNR is infinite. bh1's
# B(h) is that length, and it is multiplied by a sum of no terms: infinity times zero. Every step before is sound, and the last
# makes the picture NaN. bh2's B(h) = e^h - 1 stays finite there; but in the noise form (predict_x0=False) h is positive, and
# it overflows too. Nothing is said. With final_sigmas_type="sigma_min" both are finite. Seen: 29 November 2026.
# What reverie does: `unipc_bh1` ends, as every sampler, in the network's clean picture (docs/compatibility.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import UniPCMultistepScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sound(**options: object) -> list[bool]:
    """Tell for each of eight steps whether its latents are finite."""
    scheduler, found = UniPCMultistepScheduler(**BETAS, **options), []
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x).prev_sample
        found.append(bool(x.isfinite().all()))
    return found


all_sound, last_not = [True] * 8, [True] * 7 + [False]
cases = {"bh2": {}, "bh1": {"solver_type": "bh1"}, "noise": {"predict_x0": False}}
found = {name: sound(**options) for name, options in cases.items()}
ended = {name: sound(**options, final_sigmas_type="sigma_min") for name, options in cases.items()}
print("diffusers", diffusers.__version__, "steps that are finite:", {name: sum(steps) for name, steps in found.items()})
print("ending at the lowest level instead:", {name: sum(steps) for name, steps in ended.items()})
assert found == {"bh2": all_sound, "bh1": last_not, "noise": last_not}, "another step is NaN, or none"
assert all(steps == all_sound for steps in ended.values()), "they are NaN before a level of noise too"
PY
