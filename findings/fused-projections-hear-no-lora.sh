#!/usr/bin/env bash
# diffusers 0.42.1: after fuse_qkv_projections() what changes a U-Net's keys and values is not heard, and a saved one draws otherwise.
#
# Fusing copies to_q, to_k and to_v into to_qkv (to_k and to_v into to_kv) and computes with the copies, but the layers themselves
# stay, stand in the state dict, and can be changed: a LoRA that is merged into to_k and to_v after fusing changes nothing, to
# the bit. save_pretrained() writes both; from_pretrained() builds plain layers, warns that the copies were not used, and
# draws with the layers: another result than the network that was saved. unfuse_qkv_projections() computes with the layers
# again and leaves the copies in the state dict. Seen: 29 November 2026.
# What reverie does: layers keep their names and hear what changes them; a changed weight is packed anew (docs/architecture.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$work/venv/bin/python" - "$work/saved" <<'PY'
import sys

import diffusers, torch
from diffusers import UNet2DConditionModel

diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
).eval()
x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)


@torch.no_grad()
def output(network: UNet2DConditionModel) -> torch.Tensor:
    return network(x, 5, context).sample


plain = len(unet.state_dict())
unet.fuse_qkv_projections()
fused, before = len(unet.state_dict()), output(unet)
for name, layer in unet.named_modules():
    if name.endswith(("to_k", "to_v")):
        layer.weight.data += 3 * torch.randn_like(layer.weight)  # as a merged LoRA does
heard = (output(unet) - before).abs().max().item()
unet.save_pretrained(sys.argv[1])
again, info = UNet2DConditionModel.from_pretrained(sys.argv[1], output_loading_info=True, low_cpu_mem_usage=False)
differs = (output(again) - before).abs().max().item()
unet.unfuse_qkv_projections()
parted = (output(unet) - output(again)).abs().max().item()
print("diffusers", diffusers.__version__, "tensors: plain", plain, "fused", fused, "unfused", len(unet.state_dict()))
print("a change after fusing moves the output by", heard, "| saved and read again:", differs, "| unfused beside that:", parted)
assert heard == 0, "fused layers hear what changes"
assert differs > 0.01 and len(info["unexpected_keys"]) == fused - plain > 0, "what was saved is what is read"
assert parted < 1e-6 and len(unet.state_dict()) == fused, "the copies go with unfusing"
PY
