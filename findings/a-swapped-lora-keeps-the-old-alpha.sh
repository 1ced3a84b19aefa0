#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: set_adapters scales a hot-swapped LoRA by alpha of the one before.
#
# load_lora_weights(..., hotswap=True) puts another file into an adapter and gives it that file's scale, but leaves the first
# file's alpha beside it, which set_adapters multiplies by: after a LoRA of alpha 4 and rank 4, one of alpha 8 and rank 4 is
# drawn at half of the strength that is asked, and the other way round at twice. Loaded anew it is drawn as asked. The swap
# alone puts the strength back to 1 whatever set_adapters had set, so it has to be set again, and then is another.
# Seen: 30 November 2026. What reverie does: every file has its own alpha, and strengths are the request's own.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
WORK="$work" "$work/venv/bin/python" - <<'PY'
import os
from importlib.metadata import version
from pathlib import Path

import diffusers, torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

diffusers.utils.logging.set_verbosity_error()
work = Path(os.environ["WORK"])


def made() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    )
    return StableDiffusionPipeline(
        vae=None, unet=unet, text_encoder=None, tokenizer=None, scheduler=EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )


def change(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Give what the active LoRAs change of the U-Net's prediction."""
    x, prompt = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), torch.ones(1, 3, 8)
    with torch.no_grad():
        heard = pipeline.unet(x, 500, prompt).sample
        pipeline.disable_lora()
        plain = pipeline.unet(x, 500, prompt).sample
        pipeline.enable_lora()
    return heard - plain


def strengths(first: str, second: str) -> tuple[float, float]:
    """Give how strong the second is at strength 0.01 beside a fresh loading: swapped, and loaded into a name of its own."""
    def at(pipeline: StableDiffusionPipeline, name: str) -> torch.Tensor:
        pipeline.set_adapters(name, 0.01)
        return change(pipeline)

    fresh, swapped, beside = made(), made(), made()
    fresh.load_lora_weights(work / second, adapter_name="style")
    swapped.load_lora_weights(work / first, adapter_name="style")
    swapped.load_lora_weights(work / second, adapter_name="style", hotswap=True)
    beside.load_lora_weights(work / first, adapter_name="style")
    beside.load_lora_weights(work / second, adapter_name="other")
    own = at(fresh, "style").norm()
    return tuple(round((at(*one).norm() / own).item(), 2) for one in ((swapped, "style"), (beside, "other")))


for name, alpha in (("four", 4), ("eight", 8)):
    unet = made().unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        work / name, unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
found = {(first, second): strengths(first, second) for first, second in (("four", "eight"), ("eight", "four"), ("four", "four"))}
print("diffusers", diffusers.__version__, "peft", version("peft"), "times as strong, swapped and loaded beside:", found)
assert all(beside == 1 for _, beside in found.values()) and found["four", "four"] == (1, 1)
assert abs(found["four", "eight"][0] - 0.5) < 0.05 and abs(found["eight", "four"][0] - 2) < 0.2, "a swapped LoRA has its own alpha now"
PY
