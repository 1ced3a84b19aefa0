#!/usr/bin/env bash
# accelerate 1.15.0: an epoch resumed with load_state() and skip_first_batches() shows some samples twice and others never.
#
# A shuffled DataLoader, prepared, draws its order from torch's global generator as the epoch begins. save_state() in the middle
# keeps that generator as it stands after the draw, and load_state() puts it back: the resumed epoch draws another order, and the
# three batches that are skipped are not the three that were seen. Of 24 samples 6 or 7 come twice and as many never, in the first
# epoch too, with the same seed, without a word; the model, the optimiser and the step count are as they were. With
# DataLoaderConfiguration(use_seedable_sampler=True) and set_epoch() on the loader the rest is the rest. Seen: 30 November 2026.
# What reverie does: the order of an epoch follows from seed and epoch, and a resumed run goes on in it (data/loader.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
"$work/venv/bin/python" - "$work/state" <<'PY'
import sys

import accelerate, torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset

COUNT, BATCH, DONE = 24, 4, 3


def begun(seedable: bool) -> tuple[Accelerator, DataLoader]:
    """Begin a run as its program does."""
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    set_seed(7)
    network = torch.nn.Linear(1, 1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.arange(COUNT)), batch_size=BATCH, shuffle=True)
    return accelerator, accelerator.prepare(network, optimiser, loader)[2]


def resumed(epoch: int, seedable: bool = False) -> tuple[int, int]:
    """Interrupt an epoch after three batches and resume it; give how many of its samples were never seen, and how many twice."""
    accelerator, loader = begun(seedable)
    for _ in range(epoch):
        list(loader)
    loader.set_epoch(epoch)
    seen = []
    for (batch,), _ in zip(loader, range(DONE)):
        seen += batch.tolist()
    accelerator.save_state(sys.argv[1])
    accelerator, loader = begun(seedable)
    accelerator.load_state(sys.argv[1])
    loader.set_epoch(epoch)
    seen += [sample for (batch,) in skip_first_batches(loader, DONE) for sample in batch.tolist()]
    return COUNT - len(set(seen)), len(seen) - len(set(seen))


def drawn() -> list[int]:
    torch.manual_seed(1)
    return [sample for (batch,) in loader for sample in batch.tolist()]


found = {epoch: resumed(epoch) for epoch in range(3)}
seedable = {epoch: resumed(epoch, True) for epoch in range(3)}
loader = begun(False)[1]
print("accelerate", accelerate.__version__, "never seen and seen twice, by the epoch resumed:", found, "| seedable:", seedable)
assert drawn() == drawn(), "the order comes from another generator than torch's"
assert set(seedable.values()) == {(0, 0)}, "the seedable sampler goes on elsewhere"
assert all(min(counts) > 0 for counts in found.values()), "an epoch goes on where it was"
PY
