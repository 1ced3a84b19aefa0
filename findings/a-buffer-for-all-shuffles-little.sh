#!/usr/bin/env bash
# webdataset 1.0.2: .shuffle(n) with a buffer that holds every sample leaves them nearly in their order.
#
# The buffer need not be full before the first sample is drawn: .shuffle(5000) begins at initial=100, and while it grows takes two
# samples in for each that it gives out. So of 5,000 samples the first is one of the first 100, the first hundred are from the
# first 300, and the place in the epoch correlates by 0.65 with the place in the shard, where a shuffle has 0: what was collected
# topic by topic is learned topic by topic, though the buffer is as large as all. initial=5000 shuffles. Seen: 30 November 2026.
# What reverie does: an epoch's order is drawn over all its samples (data/loader.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
"$work/venv/bin/python" - "$work/shard.tar" <<'PY'
import random
import sys
from importlib.metadata import version

import numpy, webdataset

COUNT = 5000
with webdataset.TarWriter(sys.argv[1]) as writer:
    for place in range(COUNT):
        writer.write({"__key__": f"{place:05d}", "txt": str(place)})


def order(seed: int, **options: int) -> list[int]:
    shard = webdataset.WebDataset(sys.argv[1], shardshuffle=False)
    return [int(sample["__key__"]) for sample in shard.shuffle(COUNT, rng=random.Random(seed), **options)]


usual, whole = order(1), order(1, initial=COUNT)
correlation = {name: numpy.corrcoef(range(COUNT), places)[0, 1] for name, places in (("usual", usual), ("initial", whole))}
print("webdataset", version("webdataset"), "correlation of the orders with the shard's:", correlation)
print("furthest of the first 1, 100, 1000:", [max(usual[:count]) for count in (1, 100, 1000)])
assert sorted(usual) == list(range(COUNT)), "samples are lost"
assert abs(correlation["initial"]) < 0.05, "a full buffer does not shuffle either"
assert 0.6 < correlation["usual"] < 0.7 and max(usual[:100]) < 300, "it behaves otherwise now"
PY
