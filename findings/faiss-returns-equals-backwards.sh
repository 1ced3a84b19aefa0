#!/usr/bin/env bash
# faiss-cpu 1.15.1: IndexFlatIP returns equal scores in the reverse order of their places.
#
# Of six equal vectors the best three are 2, 1, 0, and all six are 5, 4, 3, 2, 1, 0; of two groups of three each comes
# backwards. numpy's stable sort gives 0, 1, 2. Duplicates are common in collections of pictures, so the first page of a search
# differs between the two. Seen: 28 November 2026. What reverie does: it sorts equals by their place, by either way.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet faiss-cpu==1.15.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import faiss
import numpy as np


def order(vectors: np.ndarray, count: int) -> list[int]:
    index = faiss.IndexFlatIP(4)
    index.add(vectors)
    return index.search(vectors[:1], count)[1][0].tolist()


same, groups = np.ones((6, 4), np.float32), np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
found = order(same, 6), order(same, 3), order(groups, 6)
print("faiss", faiss.__version__, found)
assert found == ([5, 4, 3, 2, 1, 0], [2, 1, 0], [2, 1, 0, 5, 4, 3]), "it behaves otherwise now"
PY
