#!/usr/bin/env bash
# diffusers 0.42.1: a start picture with an alpha channel is taken for latents, and the result is eight times as large.
#
# VaeImageProcessor does not make a picture RGB, and StableDiffusionImg2ImgPipeline takes whatever has four channels for latents
# that are encoded already: the red, green, blue and alpha of a 64 x 64 picture become the latents of one of 512 x 512, which the
# network then draws on, and a picture of 512 x 512, fully opaque as most PNG are, asks for 4096 x 4096 and for 64 times the
# memory and work. A Pillow picture, an array and a tensor alike, without a word. diffusers.utils.load_image() gives RGB;
# Image.open() gives what the file has, and .convert("RGB") has to be said. Seen: 30 November 2026.
# What reverie does: a start picture is made RGB, what is transparent is drawn (generate/canvas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6 pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import diffusers, numpy, torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from PIL import Image

torch.manual_seed(0)
unet = UNet2DConditionModel(
    block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=8, attention_head_dim=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
)  # fmt: skip
vae = AutoencoderKL(
    block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    norm_num_groups=4, layers_per_block=1,
)  # fmt: skip
pipeline = StableDiffusionImg2ImgPipeline(
    vae=vae, unet=unet, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), text_encoder=None, tokenizer=None,
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
pipeline.set_progress_bar_config(disable=True)
words = torch.zeros(1, 77, 8)
rgb = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8))
rgba = rgb.convert("RGBA")


def size(picture: object) -> tuple[int, int]:
    return pipeline(
        image=picture, prompt_embeds=words, negative_prompt_embeds=words, strength=0.5, num_inference_steps=2
    ).images[0].size


array = numpy.asarray(rgba, dtype=numpy.float32)[None] / 255
sizes = {"RGB": size(rgb), "RGBA": size(rgba), "array": size(array), "tensor": size(torch.from_numpy(array).permute(0, 3, 1, 2))}
print("diffusers", diffusers.__version__, "sizes drawn from 64 x 64:", sizes)
assert sizes == {"RGB": (64, 64)} | dict.fromkeys(("RGBA", "array", "tensor"), (512, 512)), "it behaves otherwise now"
PY
