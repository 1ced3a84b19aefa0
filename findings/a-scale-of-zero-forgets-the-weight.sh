#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: after one call at cross_attention_kwargs scale 0, a LoRA of weight 0.5 draws at 1.
#
# A network multiplies its adapters' weights by the scale before it computes, and divides by it afterwards. By 0 nothing can be
# divided, so it sets every active adapter to 1, whatever set_adapters() had said: the picture of scale 0 is right, and all after
# it, without a scale, are drawn at full strength; of two adapters both are. Any other scale is taken back, and disable_adapters()
# changes no weight. So a picture without the LoRA, drawn for comparison, changes those that follow. Seen: 30 November 2026.
# What reverie does: strengths belong to the request; each drawing sets its own and takes them back (generate/modified.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
import diffusers, peft, torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
).eval()
for name in ("one", "other"):
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), name)
for name, parameter in unet.named_parameters():
    if "lora_" in name:  # as if it had been trained
        torch.nn.init.normal_(parameter)
x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)


@torch.no_grad()
def output(**scale: float) -> torch.Tensor:
    """Compute as a pipeline does in each step, which hands its cross_attention_kwargs on."""
    return unet(x, 5, context, cross_attention_kwargs=scale).sample


def at(*weights: float) -> torch.Tensor:
    unet.set_adapters(["one", "other"][: len(weights)], list(weights))
    return output()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def after(scale: float, *weights: float) -> dict[str, float]:
    """Compute at weights, with a scale and once more without; give how far the last is from those weights and from 1."""
    full, meant = at(*[1.0] * len(weights)), at(*weights)
    output(scale=scale)
    found = output()
    return {"as set": apart(found, meant), "at 1": apart(found, full)}


zero, small, two = after(0.0, 0.5), after(0.3, 0.5), after(0.0, 0.5, 0.2)
unet.set_adapters("one", 0.5)
off = output(scale=0.0)
unet.disable_adapters()
plain = apart(off, output())
print("diffusers", diffusers.__version__, "peft", peft.__version__, "the next picture, beside those at weights", {"scale 0": zero})
print({"scale 0.3": small, "two adapters, scale 0": two}, "| the picture of scale 0, beside the plain model's:", plain)
assert plain < 1e-5 and small["as set"] < 1e-5 < 0.01 < small["at 1"], "scale 0 is not off, or 0.3 is not taken back"
assert zero["at 1"] == two["at 1"] == 0 and min(zero["as set"], two["as set"]) > 0.01, "the weight comes back after scale 0"
PY
