#!/usr/bin/env bash
# prodigyopt 1.1.2: a group of parameters whose lr is set to 0 goes on moving, and a group begun at 0 decays.
#
# 0 is the one lr that Prodigy allows to differ between groups: to train a U-Net on when its text encoder has had enough, or not
# to train that at all. But every step multiplies by the largest lr of all groups; a group at 0 only stops its running averages.
# Its last mean of gradients is so added again and again: of two groups that walk to 1, one whose lr is set to 0 after 20 steps,
# at a distance of 0.7, is 21.8 away 40 steps later. With weight_decay and decouple (the default) it is decayed as well, also
# where its lr was 0 from the first step. Adam and AdamW stand still at 0. requires_grad_(False) and no gradient (zero_grad to
# None) stop a group. Seen: 30 November 2026.
# What reverie does: what is not trained has no gradient, and groups do not end before the others (train/optimisers.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 prodigyopt==1.1.2
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from prodigyopt import Prodigy


def walked(make, decay: float, stop: int) -> list[float]:
    """Give how far the second of two groups is from 1, at most, after 20, 30 and 60 steps, its lr being 0 from step `stop` on."""
    torch.manual_seed(0)
    groups = [torch.nn.Parameter(torch.randn(4)) for _ in range(2)]
    optimiser = make([{"params": [group]} for group in groups], weight_decay=decay)
    found = []
    for step in range(61):
        if step == stop:
            optimiser.param_groups[1]["lr"] = 0.0
        if step in (20, 30, 60):
            found.append(round((groups[1] - 1).abs().max().item(), 2))
        optimiser.zero_grad()
        sum((group - 1).square().sum() for group in groups).backward()
        optimiser.step()
    return found


def prodigy(groups: list[dict], weight_decay: float) -> Prodigy:
    return Prodigy(groups, lr=1.0, d0=1e-2, weight_decay=weight_decay)


def adamw(groups: list[dict], weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.1, weight_decay=weight_decay)


stopped, decayed = walked(prodigy, 0.0, 20), walked(prodigy, 0.1, 0)
beside = walked(adamw, 0.1, 20), walked(prodigy, 0.0, 0)
print("prodigyopt", version("prodigyopt"), "distance from 1 after 20, 30 and 60 steps: stopped after 20", stopped)
print("begun at 0, with decay", decayed, "| AdamW stopped after 20", beside[0], "| begun at 0, without decay", beside[1])
assert len(set(beside[0])) == len(set(beside[1])) == 1, "the others move at 0"
assert stopped[2] > 10 * stopped[0] and stopped[1] > 2 * stopped[0], "a group stops at 0 now"
assert len(set(decayed)) == 3, "a group at 0 is not decayed"
PY
