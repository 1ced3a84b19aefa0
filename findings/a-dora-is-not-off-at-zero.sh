#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: a DoRA whose weight is set to 0 goes on changing the picture.
#
# set_adapters(name, 0) multiplies what A and B add, as for a LoRA; but a DoRA also brings every output to a length that it
# learned, and that part has no weight: at 0 it still rescales the layers. The picture is neither the model's nor the
# adapter's; fusing at 0 writes the rescaling into the weights. A sweep from 0 to 1 so never begins at the plain model, where a
# LoRA's does, to the bit. disable_adapters() is off indeed. Readers of the same file that weigh the whole difference (W' - W) are
# plain at 0. Seen: 29 November 2026.
# What reverie does: a strength multiplies the whole difference, so 0 is off (adapters/deltas.py; docs/compatibility.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
import diffusers, peft, torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
).eval()
x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)


@torch.no_grad()
def output() -> torch.Tensor:
    return unet(x, 5, context).sample


plain = output()


def apart(weight: float) -> float:
    """Tell how far the output is from the plain model's."""
    unet.set_adapters("one", weight)
    return (output() - plain).abs().max().item()


def measured(use_dora: bool) -> dict[str, float]:
    unet.add_adapter(LoraConfig(r=2, use_dora=use_dora, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "one")
    for name, parameter in unet.named_parameters():  # as if it had been trained
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter)
        elif "lora_magnitude_vector" in name:
            parameter.data *= 1.5
    found = {"1": apart(1), "0": apart(0)}
    unet.disable_adapters()
    found["disabled"] = (output() - plain).abs().max().item()
    unet.enable_adapters()
    unet.set_adapters("one", 0)
    unet.fuse_lora()
    found["fused at 0"] = (output() - plain).abs().max().item()
    unet.unfuse_lora()
    unet.delete_adapters("one")
    return found


lora, dora = measured(False), measured(True)
print("diffusers", diffusers.__version__, "peft", peft.__version__, "from the plain output: LoRA", lora, "DoRA", dora)
assert lora["0"] == lora["disabled"] == dora["disabled"] == 0, "a LoRA of weight 0, or one that is disabled, is not off"
assert lora["1"] > 0.1 and dora["1"] > 0.1 and lora["fused at 0"] < 1e-6
assert dora["0"] > 0.1 and dora["fused at 0"] > 0.1, "a DoRA of weight 0 is off now"
PY
