"""Distances between two sets of features: KID (Binkowski et al. 2018) and the Fréchet distance (Heusel et al. 2017)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3: KID, of all at once.

    Unbiased in the number of samples, so that a few hundred do; it may come out a little below 0.
    """
    x, y = x.double(), y.double()
    d, n, m = x.shape[1], len(x), len(y)
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return (within - 2 * xy.mean()).item()


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return |mx - my|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2)): FID, of these features. It falls as samples grow.

    The trace of the root is the sum of the singular values of Cx^(1/2) Cy^(1/2), which the centred samples give.
    """
    x, y = x.double(), y.double()
    a, b = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()  # (Cx Cy)^(1/2) has the singular values of a b^T as eigenvalues
    means = (x.mean(0) - y.mean(0)).square().sum()
    return (means + a.square().sum() + b.square().sum() - 2 * root).item()
