#!/usr/bin/env bash
# webdataset 1.0.2: WebDataset(shardshuffle=...) puts the shards into one order, the same in every epoch.
#
# The shuffle's generator is made anew from the data set's seed whenever an epoch begins, a seed drawn once where none is given.
# So the first samples of every epoch are from the same shards, and what .shuffle(n) mixes further on is always what lies within n
# of the same neighbours. detshuffle=True counts epochs and orders each anew, but in a copy of itself: with num_workers above 0
# every epoch gets fresh workers, which begin to count again, so the order is one there too unless persistent_workers=True.
# resampled=True draws shards afresh. Seen: 30 November 2026.
# What reverie does: the order of an epoch follows from seed and epoch, whatever reads it (data/loader.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 webdataset==1.0.2 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import sys
import warnings
from importlib.metadata import version

from torch.utils.data import DataLoader
from webdataset import ShardWriter, WebDataset

SHARDS, EACH, EPOCHS = 20, 5, 3
with ShardWriter(f"{sys.argv[1]}/%03d.tar", maxcount=EACH, verbose=0) as writer:
    for number in range(SHARDS * EACH):
        writer.write({"__key__": f"{number:04d}", "txt": str(number)})
URLS = f"{sys.argv[1]}/{{000..{SHARDS - 1:03d}}}.tar"


def orders(workers: int = 0, persistent: bool = False, **options: object) -> list[tuple[int, ...]]:
    """Give the order of the shards in each epoch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = DataLoader(WebDataset(URLS, **options), batch_size=None, num_workers=workers, persistent_workers=persistent)
        epochs = [[int(sample["txt"]) // EACH for sample in loader] for _ in range(EPOCHS)]
    assert all(sorted(set(epoch)) == list(range(SHARDS)) for epoch in epochs), "an epoch is not whole"
    return [tuple(dict.fromkeys(epoch)) for epoch in epochs]


cases = {
    "shardshuffle": {"shardshuffle": 100}, "with a seed": {"shardshuffle": 100, "seed": 3},
    "two workers": {"shardshuffle": 100, "workers": 2},
    "detshuffle": {"shardshuffle": 100, "detshuffle": True, "seed": 3},
    "detshuffle, two workers": {"shardshuffle": 100, "detshuffle": True, "seed": 3, "workers": 2},
    "detshuffle, two that stay": {"shardshuffle": 100, "detshuffle": True, "seed": 3, "workers": 2, "persistent": True},
}
found = {name: len(set(orders(**options))) for name, options in cases.items()}
print("webdataset", version("webdataset"), "orders of the shards in", EPOCHS, "epochs:", found)
assert found["detshuffle"] == EPOCHS and found["detshuffle, two that stay"] > 1, "detshuffle is one order without workers too"
assert {found[name] for name in ("shardshuffle", "with a seed", "two workers", "detshuffle, two workers")} == {1}, "they differ"
PY
