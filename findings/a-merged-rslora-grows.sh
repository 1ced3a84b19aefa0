#!/usr/bin/env bash
# peft 0.21.2: a rank-stabilised LoRA merged with weight 1 is sqrt(rank) times as strong.
#
# With use_rslora a LoRA is scaled by alpha / sqrt(rank). add_weighted_adapter puts that scale into the merged matrices, gives the
# new adapter alpha = rank, so that it would be scaled by 1, and copies use_rslora from the first adapter: it is scaled by
# rank / sqrt(rank). Of rank 16 one adapter "merged" alone is four times itself, of rank 64 eight times, by "linear", "cat" and
# "svd" alike; a LoRA that was not rank-stabilised grows with it, and stays itself where it is named first. No message tells.
# Seen: 30 November 2026. What reverie does: LoRAs are added to the weights, each by the scale of its own file.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)
x = torch.randn(4, 96)


def growth(rank: int, how: str, stabilised: bool) -> float:
    """Give how strong an adapter is that was merged alone with weight 1, beside itself."""
    plain = nn.Sequential(nn.Linear(96, 96))
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=["0"], init_lora_weights=False, use_rslora=stabilised)
    before = plain(x)
    model = get_peft_model(plain, config, "one")
    own = model(x) - before
    model.add_weighted_adapter(["one"], [1.0], "merged", combination_type=how)
    model.set_adapter("merged")
    return ((model(x) - before).norm() / own.norm()).item()


with torch.no_grad():
    found = {(rank, how): round(growth(rank, how, True), 3) for rank in (16, 64) for how in ("linear", "cat", "svd")}
    plain = {(rank, how): round(growth(rank, how, False), 3) for rank in (16, 64) for how in ("linear", "cat", "svd")}
print("peft", version("peft"), "times as strong:", found, "without use_rslora:", plain)
assert all(times == 1 for times in plain.values())
assert all(abs(times - rank**0.5) < 1e-2 for (rank, _), times in found.items()), "a merged rsLoRA keeps its strength now"
PY
