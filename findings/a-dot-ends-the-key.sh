#!/usr/bin/env bash
# webdataset 1.0.2: samples whose keys have a dot are written as given and read as one sample, or as none with a picture.
#
# A reader takes the name up to its first dot for the key and all behind it for the ending; TarWriter and ShardWriter put key, dot
# and ending together without a look at the key. "sd1.5_a" and "sd1.5_b" with a picture and a caption each are written without a
# word and come back as one sample "sd1" with "5_a.jpg", "5_a.txt", "5_b.jpg" and "5_b.txt": what asks for "jpg" and "txt" finds
# none, decoders that go by the ending pass the captions over, and a shard of 3 has 2 samples. Names with a version number
# are usual among pictures of models. A dot in a folder of the key does no harm. Seen: 30 November 2026.
# What reverie does: keys that it writes are numbers, and it reads as webdataset does (jobs/render.py, files.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
"$work/venv/bin/python" - "$work/shard.tar" <<'PY'
import sys
from importlib.metadata import version

import webdataset


def read(*keys: str) -> dict[str, list[str]]:
    """Write a shard of samples with these keys; give the keys that are read, with their endings."""
    with webdataset.TarWriter(sys.argv[1]) as writer:
        for key in keys:
            writer.write({"__key__": key, "jpg": b"a picture", "txt": f"caption of {key}"})
    samples = webdataset.WebDataset(sys.argv[1], shardshuffle=False)
    return {sample["__key__"]: sorted(name for name in sample if not name.startswith("__")) for sample in samples}


found = read("sd1.5_a", "sd1.5_b", "sd2.1_c")
print("webdataset", version("webdataset"), "of three samples read:", found)
assert read("a", "sd1.5/b") == {"a": ["jpg", "txt"], "sd1.5/b": ["jpg", "txt"]}, "other keys are not read as written"
merged = {"sd1": ["5_a.jpg", "5_a.txt", "5_b.jpg", "5_b.txt"], "sd2": ["1_c.jpg", "1_c.txt"]}
assert found == merged, "it behaves otherwise now"
PY
