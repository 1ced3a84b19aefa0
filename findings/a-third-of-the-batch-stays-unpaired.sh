#!/usr/bin/env bash
# torchcfm 1.0.7: optimal transport pairs a batch's noise and pictures by lot: 37% of a batch is not trained.
#
# The exact plan between as many noises as pictures is one to one. ExactOptimalTransportConditionalFlowMatcher does not
# take its pairs but draws as many from it, each put back (sample_plan(replace=True), with no argument for it): of 128
# pictures 81 come up, some of them four times and more, and 47 not at all, as in a bootstrap (1 - 1/e). An epoch passes 37% of
# its pictures over, and the gradient is of fewer pictures than its batch. Lots are drawn from numpy's global generator: after the
# same torch.manual_seed() the pairs are others. ot_sampler.sample_plan(x0, x1, replace=False), called oneself, gives every
# picture once; the Schroedinger bridge's plan draws likewise. Seen: 1 December 2026.
# What reverie does: every picture of a batch is trained once, with noise that follows from seed and step (train/diffusion.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 pot==0.9.7
"$work/venv/bin/pip" install --quiet --no-deps torchcfm==1.0.7
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

BATCH = 128
matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)


def trained(seed: int, matcher: ConditionalFlowMatcher) -> list[int]:
    """Return how often each picture of a batch is gone to: the end of the path that the network is taught."""
    torch.manual_seed(seed)
    noise, pictures = torch.randn(BATCH, 8), 2 + torch.randn(BATCH, 8)
    time, place, flow = matcher.sample_location_and_conditional_flow(noise, pictures)
    ends = place + (1 - time[:, None]) * flow
    return torch.bincount(torch.cdist(ends, pictures).argmin(dim=1), minlength=BATCH).tolist()


np.random.seed(0)
counts = [trained(seed, matcher) for seed in range(50)]
share = float(np.mean([sum(count > 0 for count in of_batch) for of_batch in counts]) / BATCH)
most = max(max(of_batch) for of_batch in counts)
print("torchcfm", version("torchcfm"), "| of a batch are trained", round(share, 3), "| one of them at most", most, "times")
assert abs(share - (1 - 1 / np.e)) < 0.02, "pairs are drawn otherwise now"
assert most >= 4, "none is drawn often now"
assert set(trained(0, ConditionalFlowMatcher(sigma=0.0))) == {1}, "without transport not every picture is trained"
torch.manual_seed(0)
noise, pictures = torch.randn(BATCH, 8), 2 + torch.randn(BATCH, 8)
paired = matcher.ot_sampler.sample_plan(noise, pictures, replace=False)[1]
assert len(paired.unique(dim=0)) == BATCH, "the plan is not one to one"
assert trained(0, matcher) != trained(0, matcher), "torch's seed decides the pairs now"
PY
