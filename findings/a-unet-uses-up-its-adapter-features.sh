#!/usr/bin/env bash
# diffusers 0.42.1: a U-Net takes the features of a T2I-Adapter out of the list it is given, and a batch of one is left out in the middle.
#
# UNet2DConditionModel pops down_intrablock_additional_residuals as it goes: the list is empty after the call, and the same list
# given for the next step gives the picture without an adapter, without a word. Features of a batch of 1 are broadcast to the
# batch in the blocks, but added after the middle block only where their shape is that of the sample: for two rows (classifier-
# free guidance) with the features of one, the last is dropped, also without a word (layout of SDXL's adapters, whose last
# feature has the size of the middle). The pipelines clone the list for every step and repeat features themselves.
# Seen: 29 November 2026.
# What reverie does: features are read, not taken, and broadcast to all rows, in the middle too (adapters/features.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import UNet2DConditionModel

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=2,
).eval()
x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 3, 8)
sizes = [(8, 8), (16, 8), (16, 4), (16, 4)]  # where each block adds its own, and after the middle
features = [torch.randn(1, channels, side, side) for channels, side in sizes]


@torch.no_grad()
def output(given: list[torch.Tensor] | None) -> torch.Tensor:
    return unet(x, 5, context, down_intrablock_additional_residuals=given).sample


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


repeated = [f.repeat(2, 1, 1, 1) for f in features]
first, left = output(repeated), len(repeated)
second = output(repeated)
one = output([f.clone() for f in features])
without_last = output([*(f.repeat(2, 1, 1, 1) for f in features[:-1]), torch.zeros(2, *features[-1].shape[1:])])
print("diffusers", diffusers.__version__, "| features left in the list after a call:", left)
print("second call with the list, beside none:", apart(second, output(None)), "| beside the first call:", apart(second, first))
print("features of one row, beside repeated:", apart(one, first), "| beside repeated without the last:", apart(one, without_last))
assert left == 0 and apart(second, output(None)) == 0 and apart(second, first) > 0.01, "the list is not used up"
assert apart(one, first) > 1e-3 and apart(one, without_last) < 1e-6, "the last feature is broadcast too"
PY
