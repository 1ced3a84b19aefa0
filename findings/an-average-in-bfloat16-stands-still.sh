#!/usr/bin/env bash
# diffusers 0.42.1: an EMAModel of bfloat16 parameters stops following them, long before its decay says so.
#
# EMAModel keeps its average in the type of the parameters, and each step moves it by (1 - decay) times what lies between. A
# bfloat16 number has 8 bits: a move of less than 1 part in 512 is rounded away, so with a decay of 0.997, which the default
# reaches at step 3,000, weights that differ by less than two thirds of their size stay where they are. Weights that grow by a
# tenth at step 200 are 36% followed after 3,000 steps, where float32 has followed all; at the full decay of 0.9999 not one of
# 10,000 moves, in float16 neither. foreach=True is no other. What is saved as the average is the early network. float32
# parameters, or ema.to(dtype=torch.float32), follow. Seen: 30 November 2026.
# What reverie does: trained weights and their averages are float32 (train/ema.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers.training_utils import EMAModel

torch.manual_seed(0)
WEIGHTS = 1 + torch.rand(10_000)


def followed(kind: torch.dtype, before: int, steps: int, kept: torch.dtype | None = None, foreach: bool = False) -> float:
    """Let weights grow by a tenth after so many steps; give the part that the average has followed after some more."""
    parameter = torch.nn.Parameter(WEIGHTS.to(kind, copy=True))
    average = EMAModel([parameter], decay=0.9999, foreach=foreach)
    average.to(dtype=kept)
    average.optimization_step = before
    start = average.shadow_params[0].float().clone()
    with torch.no_grad():
        parameter.copy_(WEIGHTS * 1.1)
    for _ in range(steps):
        average.step([parameter])
    return ((average.shadow_params[0].float() - start).mean() / (WEIGHTS * 0.1).mean()).item()


kinds = (torch.float32, torch.float16, torch.bfloat16)
early = {kind: round(followed(kind, 200, 2800), 3) for kind in kinds}
late = {kind: round(followed(kind, 100_000, 2000), 3) for kind in kinds}
mended = followed(torch.bfloat16, 200, 2800, torch.float32)
print("diffusers", diffusers.__version__, "followed from step 200 to 3,000:", early, "| 2,000 steps at 0.9999:", late)
print("of bfloat16, kept in float32:", mended)
assert mended > 0.99 and early[torch.float32] > 0.99 and abs(late[torch.float32] - 0.181) < 0.005, "float32 does not follow"
assert followed(torch.bfloat16, 200, 2800, foreach=True) < 0.5, "foreach is another way"
assert early[torch.bfloat16] < 0.5 and late[torch.bfloat16] == late[torch.float16] == 0, "it behaves otherwise now"
PY
