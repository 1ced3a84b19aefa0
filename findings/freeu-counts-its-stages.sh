#!/usr/bin/env bash
# diffusers 0.42.1: enable_freeu() scales other layers of Stable Diffusion 1 and 2 than the authors' FreeU of the same numbers.
#
# The authors tell the two stages by width (1280 channels b1 and s1, 640 b2 and s2: demo/free_lunch_utils.py of ChenyangSi/FreeU,
# at 32ef217, and ComfyUI's nodes with 4 and 2 times the model's channels). diffusers counts blocks: b1 is for the first of the
# way up, b2 for the second. In SD 1 and 2 both are 1280 wide, so b2 and s2 act where the authors have b1 and s1, and the layers
# of 640 are left alone: of the ten residual blocks that the authors change, three get the same, three other factors and four
# none. In SDXL five of seven get the same. With the authors' numbers (1.5, 1.6, 0.9, 0.2) the lowest frequencies of three skips
# of 1280 channels are multiplied by 0.2 where 0.9 is meant. Seen: 30 November 2026.
# What reverie does: `--freeu` counts as diffusers does; a replay of ComfyUI's node says so (requests/foreign/nodes.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks

seen = []
apply = unet_2d_blocks.apply_freeu


def watched(index: int, hidden: torch.Tensor, skip: torch.Tensor, **factors: float):
    """Note by which b and s one residual block's inputs are changed, and by which the authors' rule would change them."""
    width, before = hidden.shape[1], hidden.clone()
    changed, damped = apply(index, hidden, skip, **factors)
    b = (changed / before)[:, : width // 2].median().item()
    s = (damped.mean() / skip.mean()).item()  # its mean is its lowest frequency
    authors = {4 * CHANNELS: (1.5, 0.9), 2 * CHANNELS: (1.6, 0.2)}.get(width, (1.0, 1.0))
    seen.append((width // CHANNELS, (round(b, 2), round(s, 2)), authors))
    return changed, damped


CHANNELS = 8  # for the model's 320
unet_2d_blocks.apply_freeu = watched


def counted(*widths: int) -> list[tuple[int, tuple[float, float], tuple[float, float]]]:
    """Give for each residual block of the way up its width from below, the b and s applied, and the authors'."""
    down = ["CrossAttnDownBlock2D"] * (len(widths) - 1) + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(widths) - 1)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=[CHANNELS * w for w in widths], norm_num_groups=4, cross_attention_dim=8,
        down_block_types=down, up_block_types=up, attention_head_dim=2,
    )
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    seen.clear()
    with torch.no_grad():
        unet(torch.randn(1, 4, 32, 32), 5, torch.randn(1, 3, 8))
    return list(seen)


torch.manual_seed(0)
sd1, xl = counted(1, 2, 4, 4), counted(1, 2, 4)
print("diffusers", diffusers.__version__, "| width, b and s, the authors' b and s: SD 1", sd1, "| XL", xl)
one, two, none = (1.5, 0.9), (1.6, 0.2), (1.0, 1.0)
assert [authors for _, _, authors in sd1] == [one] * 7 + [two] * 3 + [none] * 2, "the layout is no longer SD 1's"
assert [found for _, found, _ in sd1] == [one] * 3 + [two] * 3 + [none] * 6, "SD 1's blocks are treated in another way"
assert [found == authors for _, found, authors in xl] == [True] * 3 + [False] + [True] * 2 + [False] + [True] * 2, "XL's are"
PY
