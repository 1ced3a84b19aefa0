#!/usr/bin/env bash
# ema-pytorch 0.8.3: PostHocEMA averages far too long: of the default update_every=100 the first weights are never lost.
#
# EDM2's average of width sigma_rel (Karras et al. 2312.02696) multiplies by (1 - 1/t)^(1 + gamma) at every training step t.
# PostHocEMA does so at each 100th step alone, but with the factor of one step: the weights fade 100 times too slowly. Of a
# weight that grows evenly from 0 to 1 in 10,000 steps the average for 0.05 is 0.947, and 0.151 comes out; for 0.28 it is 0.539,
# and 0.0115. All widths that synthesize_ema_model() makes are as wrong, for its sums assume the right profile. With
# update_every=10 it is 0.642 and 0.105, with 1 it is right: pass that. Seen: 30 November 2026.
# What reverie does: the average takes in every step (train/ema.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 ema-pytorch==0.8.3
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from importlib.metadata import version

import torch
from ema_pytorch import PostHocEMA
from ema_pytorch.post_hoc_ema import sigma_rel_to_gamma

WIDTHS, STEPS = (0.05, 0.28), 10_000


def averages(name: str, **options: int) -> dict[float, float]:
    """Average a weight that grows evenly from 0 to 1; give what each width makes of it, and one that is made afterwards."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    folder = f"{sys.argv[1]}/{name}"
    ema = PostHocEMA(model, sigma_rels=WIDTHS, checkpoint_folder=folder, checkpoint_dtype=torch.float32, **options)
    for step in range(STEPS):
        torch.nn.init.constant_(model.weight, (step + 1) / STEPS)
        ema.update()
    found = dict(zip(WIDTHS, (each.ema_model.weight.item() for each in ema.ema_models)))
    return found | {0.15: ema.synthesize_ema_model(sigma_rel=0.15).ema_model.weight.item()}


meant = {width: (sigma_rel_to_gamma(width) + 1) / (sigma_rel_to_gamma(width) + 2) for width in (*WIDTHS, 0.15)}
each, tenth, default = averages("1", update_every=1), averages("10", update_every=10), averages("default")
print("ema-pytorch", version("ema-pytorch"), "meant:", meant, "update_every=1:", each, "10:", tenth, "the default:", default)
assert all(abs(each[width] - meant[width]) < 1e-3 for width in meant), "it is wrong with every step too"
assert all(default[width] < tenth[width] < 0.75 * meant[width] for width in meant), "it follows in fewer updates now"
assert default[0.05] < 0.2 and default[0.28] < 0.02
PY
