#!/usr/bin/env bash
# accelerate 1.15.0: where gradient accumulation does not divide an epoch's batches, the last update of each is too small.
#
# Within accumulate() every loss is divided by gradient_accumulation_steps, and at the end of the data loader the optimiser steps
# with what there is. Of 10 batches and 4 steps the third update has two batches and divides by four: half of the gradient's
# mean. Of 9 it is a quarter, and such a batch alone is all that an epoch of a small data set ends on (13 pictures, as DreamBooth
# and textual inversion have them, are three updates and a quarter of one). Adam hides the size and not its weight beside earlier
# gradients, and clipping by norm rarely reaches it. sync_with_dataloader=False carries the rest over to the next epoch, and
# then all updates are whole. Seen: 30 November 2026.
# What reverie does: a batch has one size wherever epochs end, and is computed in parts of it (data/loader.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
"$work/venv/bin/python" - <<'PY'
import accelerate, torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.data import DataLoader, TensorDataset


def updates(batches: int, **plugin: bool) -> list[float]:
    """Train two epochs on a loss whose gradient is -1 for every batch, with SGD of rate 1; give the updates."""
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=4, **plugin), mixed_precision="no"
    )
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = DataLoader(TensorDataset(torch.ones(batches, 1)))
    model, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    found, before = [], 0.0
    for _ in range(2):
        for (x,) in loader:
            with accelerator.accumulate(model):
                accelerator.backward(-model(x).mean())
                optimiser.step()
                optimiser.zero_grad()
            if (now := next(model.parameters()).item()) != before:
                found.append(round(now - before, 6))
                before = now
    return found


found = {batches: updates(batches) for batches in (8, 9, 10, 13)}
carried = updates(10, sync_with_dataloader=False)
print("accelerate", accelerate.__version__, "updates of two epochs, by batches:", found, "| carried over, of 10:", carried)
assert found[8] == [1, 1] * 2 and carried == [1] * 5, "whole accumulations are not the mean of their gradients"
assert found[9] == [1, 1, 0.25] * 2, "the last update of 9 batches is another"
assert found[10] == [1, 1, 0.5] * 2 and found[13] == [1, 1, 1, 0.25] * 2, "the last update is a mean now"
PY
