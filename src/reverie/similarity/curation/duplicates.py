"""Near-duplicates: pictures whose embedding is as like an earlier kept one's as a threshold says."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float

BLOCK = 2048  # rows compared at once: 32 MB of cosines a pair of blocks
Count = TypeVar("Count")


def near_duplicates(vectors: Float[np.ndarray, "n d"], threshold: float) -> Bool[np.ndarray, " n"]:
    """Tell of each normalised row whether an earlier row that is kept has a cosine of `threshold` or more with it.

    So of every group of like pictures the first stays, and each that goes has one that stays: a chain of small changes
    is not drawn together into one group. Compares all with all, n²d/2 multiplications, in blocks.
    """
    dropped = np.zeros(len(vectors), bool)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK])
        for earlier in range(0, start, BLOCK):
            kept = vectors[earlier : earlier + BLOCK][~dropped[earlier : earlier + BLOCK]]
            dropped[start : start + BLOCK] |= (block @ kept.T >= threshold).any(1) if len(kept) else False
        alike = block @ block.T >= threshold
        for row in range(len(block)):
            if not dropped[start + row]:
                dropped[start + row + 1 : start + BLOCK] |= alike[row, row + 1 :]
    return dropped
