#!/usr/bin/env bash
# diffusers 0.42.1: FlowMatchEulerDiscreteScheduler with a shift shifts its lowest noise level twice.
#
# set_timesteps(n) takes n even values between the largest and the smallest sigma, and shifts them. But the smallest was shifted
# when the scheduler was made: of 1,000 training levels with shift 3, 0.001 is 0.00299, and shifted once more 0.00893. So
# every number of steps ends at three times the noise that the training schedule ends at, and all levels between lie higher
# than the shift of an even spacing; a list of even sigmas that is given by hand is shifted once, and ends at 0.00299.
# The two ways to ask for one schedule draw two pictures. Seen: 29 November 2026.
# What reverie does: levels of a shifted flow are shifted once; `--sigmas` names others (docs/guide/checkpoints.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy
"$work/venv/bin/python" - <<'PY'
import diffusers
import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler


def shifted(u: np.ndarray, shift: float) -> np.ndarray:
    return shift * u / (1 + (shift - 1) * u)


even = np.linspace(1, 0.001, 4)
for shift in (1.0, 3.0):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    lowest = scheduler.sigmas[-1].item()
    scheduler.set_timesteps(4)
    counted = scheduler.sigmas[:-1].numpy()
    scheduler.set_timesteps(sigmas=even.tolist())
    given = scheduler.sigmas[:-1].numpy()
    print("diffusers", diffusers.__version__, "shift", shift, "lowest", lowest, "counted", counted, "given", given)
    assert np.allclose(given, shifted(even, shift), atol=1e-6) and np.isclose(given[-1], lowest)
    twice = shifted(np.linspace(1, lowest, 4), shift)
    assert np.allclose(counted, twice, atol=1e-6), "set_timesteps(n) spaces its levels in another way now"
assert counted[-1] > 2.9 * lowest, "the lowest level is shifted once now"
PY
