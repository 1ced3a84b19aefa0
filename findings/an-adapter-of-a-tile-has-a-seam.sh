#!/usr/bin/env bash
# peft 0.21.2: an adapter of a convolution that wraps around fills the border with zeros, and is another when merged.
#
# Seamless pictures are drawn by convolutions with padding_mode="circular". What LoRA, DoRA, LoHa and LoKr add to such a layer
# takes its stride and its padding, and not its mode: the adapter sees black beyond the border where the layer sees the
# opposite side. So a tile drawn with a LoRA of convolutions (LoCon, LyCORIS) gets a seam, and moves its content when the input
# is rolled. Merged (merge_adapter, diffusers' fuse_lora) the very same adapter wraps: inside both ways agree to rounding, at the
# border they do not. Seen: 30 November 2026.
# What reverie does: adapters are merged into the weights, which wrap (runtime/changes.py: seamless).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)
x = torch.randn(1, 4, 12, 12)
kinds = {
    "LoRA": LoraConfig(r=2, target_modules=["0"], init_lora_weights=False),
    "DoRA": LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, use_dora=True),
    "LoHa": LoHaConfig(r=2, target_modules=["0"], init_weights=False),
    "LoKr": LoKrConfig(r=2, target_modules=["0"], init_weights=False),
}


def differences(config: object, mode: str) -> tuple[float, float, float]:
    """Give by how much merging changes the border and the inside, and by how much rolling changes what is merged."""
    model = get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)), config).eval()
    apart = model(x)
    model.merge_adapter()
    merged = model(x)
    found = (apart - merged).abs().amax((0, 1))
    rolled = (torch.roll(merged, 5, -1) - model(torch.roll(x, 5, -1))).abs().max()
    inside = found[1:-1, 1:-1].max()
    return round(found.max().item(), 4), round(inside.item(), 4), round(rolled.item(), 4)


with torch.no_grad():
    wrapped = {name: differences(config, "circular") for name, config in kinds.items()}
    black = {name: differences(config, "zeros")[:2] for name, config in kinds.items()}
print("peft", version("peft"), "border, inside, rolled:", wrapped, "padded with zeros:", black)
assert all(found == (0, 0) for found in black.values())
assert all(inside == rolled == 0 for _, inside, rolled in wrapped.values())
assert all(border > 0.05 for border, _, _ in wrapped.values()), "adapters wrap around now"
PY
