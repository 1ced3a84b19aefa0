#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: a LoRA saved with save_lora_weights() draws at half its strength when read.
#
# LoraConfig's alpha is 8 where none is given, and the layers multiply by alpha / rank: 2 for rank 4. save_lora_weights() writes A
# and B alone, and load_lora_weights() takes alpha for the rank: the LoRA comes back at half the strength that it was trained at,
# at a quarter with lora_alpha=16, and likewise where use_rslora multiplies by alpha / sqrt(rank). Only alpha = rank comes back as
# it was. The configuration goes along where it is handed over as unet_lora_adapter_metadata, or with unet.save_lora_adapter();
# then the output is the trained one to the bit. A weight of alpha / rank in set_adapters() mends a file that lacks it. Seen: 30
# November 2026.
# What reverie does: alpha is read from that header or from keys; in peft's layout it is written into B (train/lora_files.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2
"$work/venv/bin/python" - "$work/saved" <<'PY'
import sys

import diffusers, peft, torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

diffusers.utils.logging.set_verbosity_error()
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
torch.manual_seed(0)
x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)


def base() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).eval()


@torch.no_grad()
def output(unet: UNet2DConditionModel) -> torch.Tensor:
    return unet(x, 5, context).sample


def read(weight: float = 1) -> torch.Tensor:
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4), text_encoder=None, tokenizer=None,
        unet=base(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
    )
    pipeline.load_lora_weights(sys.argv[1], weight_name="pytorch_lora_weights.safetensors", adapter_name="one")
    pipeline.set_adapters("one", weight)
    return output(pipeline.unet)


def apart(**options: object) -> dict[str, float]:
    """Train a LoRA of rank 4, save and read it; give how far the output read is from the one trained, by how it was saved."""
    unet = base()
    unet.add_adapter(LoraConfig(r=4, target_modules=TARGETS, **options))
    for name, parameter in unet.named_parameters():
        if "lora_" in name:  # as if it had been trained
            torch.nn.init.normal_(parameter, std=0.5)
    trained, found = output(unet), {}
    config = unet.peft_config["default"]
    weights = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(sys.argv[1], unet_lora_layers=weights)
    found["alone"] = (read() - trained).abs().max().item()
    factor = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    found["with the weight"] = (read(factor) - trained).abs().max().item()
    StableDiffusionPipeline.save_lora_weights(sys.argv[1], unet_lora_layers=weights, unet_lora_adapter_metadata=config.to_dict())
    found["with its configuration"] = (read() - trained).abs().max().item()
    return found


rslora = {"lora_alpha": 4, "use_rslora": True}
cases = {"default": {}, "alpha 16": {"lora_alpha": 16}, "rslora": rslora, "alpha 4": {"lora_alpha": 4}}
found = {name: apart(**options) for name, options in cases.items()}
print("diffusers", diffusers.__version__, "peft", peft.__version__, "read beside trained:", found)
assert all(how["with its configuration"] == 0 and how["with the weight"] < 1e-5 for how in found.values())
assert found["alpha 4"]["alone"] == 0 and min(found[name]["alone"] for name in list(cases)[:3]) > 0.1, "alpha comes back now"
PY
