#!/usr/bin/env bash
# diffusers 0.42.1: EulerDiscreteScheduler with interpolation_type="log_linear" tells the network other timesteps than it steps by.
#
# The levels are laid evenly in their logarithm between the largest and the smallest, but the timesteps stay those of the spacing,
# evenly from 999 to 0, and these are what the network is given. Of 20 steps from 14.6 the tenth has the level 0.89 and the timestep
# of 1.77, the fifteenth 0.19 and the timestep of 0.73: the network takes out twice to four times the noise that is there. The
# list has one level too many besides, so the last step ends at 0.0292 instead of 0. use_exponential_sigmas=True lays the levels
# as evenly, with their own timesteps and the end. Seen: 30 November 2026.
# What reverie does: a level is told by its own timestep; a replay notes the setting as not honoured (requests/foreign/diffusers.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PY'
import diffusers, numpy
from diffusers import EulerDiscreteScheduler

TRAINED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def walked(**options: object) -> tuple[float, float]:
    """Give how much noisier a timestep is than its level at most, over 20 steps, and the level at which the last step ends."""
    scheduler = EulerDiscreteScheduler(**TRAINED, timestep_spacing="linspace", **options)
    scheduler.set_timesteps(20)
    of_timestep = numpy.interp(scheduler.timesteps, range(1000), ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5)
    return float(max(of_timestep[:-1] / scheduler.sigmas[:19].numpy())), float(scheduler.sigmas[20])


log_linear, linear, exponential = walked(interpolation_type="log_linear"), walked(), walked(use_exponential_sigmas=True)
print("diffusers", diffusers.__version__, "log_linear:", log_linear, "linear:", linear, "exponential:", exponential)
assert max(linear[0], exponential[0]) < 1.01 and linear[1] == exponential[1] == 0, "the other ways err too"
assert 4 < log_linear[0] < 5 and abs(log_linear[1] - 0.0292) < 1e-4, "it behaves otherwise now"
PY
