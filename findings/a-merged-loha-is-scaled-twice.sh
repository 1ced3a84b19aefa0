#!/usr/bin/env bash
# lycoris-lora 4.1.3: merging a LoHa or a LoKr into a network multiplies it by alpha / rank twice, so it draws too weakly.
#
# get_weight() of both kinds gives the difference times alpha / rank, as the forward pass of training uses it; get_diff_weight(),
# from which merge_to() and onfly_merge() take it, multiplies by that once more. With rank 4 and alpha 1 the merged network is
# changed by a quarter of what was trained, with alpha = rank by all of it, with alpha 8 by twice that. The learned scalar
# (use_scalar=True), by which the forward pass multiplies too, is left out. LoRA and LoCon are merged as trained, and what the
# file saves of all of them is right: read by others it is at full strength. Seen: 30 November 2026.
# What reverie does: LoHa and LoKr are scaled by alpha / rank once, as in training (adapters/deltas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 lycoris-lora==4.1.3
"$work/venv/bin/python" - <<'PY'
import logging

import torch
from importlib.metadata import version
from lycoris import LycorisNetwork, create_lycoris

logging.disable(logging.WARNING)
RANK, PIXELS = 4, torch.randn(5, 64, generator=torch.Generator().manual_seed(2))


def merged(algo: str, alpha: float, **options: object) -> float:
    """Give how strongly the merged adapter acts, in parts of how it acts as trained."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 48))
    plain = network(PIXELS)
    LycorisNetwork.apply_preset({"target_module": ["Linear", "Sequential"]})
    adapter = create_lycoris(network, 1.0, linear_dim=RANK, linear_alpha=alpha, algo=algo, **options)
    adapter.apply_to()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    trained = network(PIXELS) - plain
    adapter.restore()
    adapter.merge_to(1.0)
    return ((network(PIXELS) - plain) * trained).sum().item() / trained.square().sum().item()


kinds = {"lora": {}, "loha": {}, "lokr": {"decompose_both": True, "factor": 4}}
found = {(algo, alpha): round(merged(algo, alpha, **kinds[algo]), 4) for algo in kinds for alpha in (1, 4, 8)}
print("lycoris-lora", version("lycoris-lora"), "merged, in parts of trained, by kind and alpha at rank 4:", found)
assert all(found["lora", alpha] == 1 for alpha in (1, 4, 8)), "a LoRA is not merged as it was trained"
assert all(found[algo, alpha] == alpha / RANK for algo in ("loha", "lokr") for alpha in (1, 4, 8)), "it behaves otherwise now"
PY
