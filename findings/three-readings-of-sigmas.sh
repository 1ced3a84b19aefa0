#!/usr/bin/env bash
# diffusers 0.42.1: set_timesteps(sigmas=...) reads one list of noise levels in three ways, by the scheduler.
#
# FlowMatchEulerDiscreteScheduler takes a step from each level and adds the 0 at the end. EulerDiscreteScheduler takes the last
# level for the end: [10, 3, 1] are two steps, and the picture keeps noise of 1. EDMEulerScheduler (Playground 2.5, CosXL) takes
# them for places between 0 and 1 on Karras's ramp: 0 is its largest level and 1 its smallest, so levels come out as other ones,
# below zero, or as NaN timesteps; and a list, which its documentation allows, raises an AttributeError, only a tensor
# is read. Pipelines hand their sigmas on to whichever it is. Seen: 29 November 2026.
# What reverie does: `--sigmas` means the levels themselves for every model, and ends where they end (docs/guide/pictures.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

levels = [10.0, 3.0, 1.0]


def read(scheduler, given) -> tuple[int, list[float]]:
    """Give how many steps a scheduler takes, and its levels."""
    count = {"num_inference_steps": len(given)} if isinstance(scheduler, EDMEulerScheduler) else {}
    scheduler.set_timesteps(sigmas=given, **count)
    return len(scheduler.timesteps), [round(level, 3) for level in scheduler.sigmas.tolist()]


euler = read(EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), levels)
flow = read(FlowMatchEulerDiscreteScheduler(), [1.0, 0.5, 0.2])
edm = EDMEulerScheduler()
try:
    read(edm, levels)
    refused = False
except AttributeError:
    refused = True
steps, as_levels = read(edm, torch.tensor(levels))
broken = bool(edm.timesteps.isnan().any())
ramp = read(edm, torch.tensor([0.0, 0.5, 1.0]))[1]
usual = EDMEulerScheduler()
usual.set_timesteps(3)
print("diffusers", diffusers.__version__, "Euler", euler, "flow", flow)
print("EDM: a list is refused:", refused, "| levels become", as_levels, "NaN timesteps:", broken, "| 0, 0.5, 1 become", ramp)
assert euler == (2, levels), "Euler no longer ends at the last level"
assert flow == (3, [1.0, 0.5, 0.2, 0.0]), "the flow no longer adds the end"
assert refused and broken and min(as_levels) < 0, "EDM reads levels now"
assert ramp == [round(level, 3) for level in usual.sigmas.tolist()] == [80.0, ramp[1], 0.002, 0.0], "EDM reads no ramp now"
PY
