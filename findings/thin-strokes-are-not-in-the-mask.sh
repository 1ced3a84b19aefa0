#!/usr/bin/env bash
# diffusers 0.42.1: thin strokes of an inpainting mask are not in the mask that the network sees, but in the picture.
#
# The mask is brought to the latents' size by torch's interpolate() with its default, nearest neighbour: of each 8 x 8 pixels the
# upper left one decides for all. A stroke 6 pixels wide is in the mask where it crosses such a pixel and else is not: of its eight
# places two lose it whole. An inpainting network (9 channels) is given beside it the picture with the stroke cut out, grey, and is
# told that grey is real: it keeps a grey stroke. Every edge of a mask moves right and down by up to 7 pixels, so what was marked
# first of the left and upper edge stays. Multiples of 8, or a mask grown by 8 pixels, are safe. Seen: 30 November 2026.
# What reverie does: a latent is drawn where any of its pixels is marked (generate/canvas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6 pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image

torch.manual_seed(0)
unet = UNet2DConditionModel(
    block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=8, attention_head_dim=4, in_channels=9,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
)  # fmt: skip
vae = AutoencoderKL(
    block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    norm_num_groups=4, layers_per_block=1, sample_size=64,
)  # fmt: skip
pipeline = StableDiffusionInpaintPipeline(
    vae=vae, unet=unet, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), text_encoder=None, tokenizer=None,
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
pipeline.set_progress_bar_config(disable=True)
seen, encoded, words = [], [], torch.zeros(1, 77, 8)
unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 4]))
vae.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0]))


def drawn(left: int, width: int = 6) -> tuple[int, int]:
    """Mark a stroke from top to bottom; give the columns of latents that are drawn, and those of pixels that are cut out."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (left, 0, left + width, 64))
    pipeline(
        image=Image.new("RGB", (64, 64), "white"), mask_image=mask, prompt_embeds=words, negative_prompt_embeds=words,
        num_inference_steps=1, height=64, width=64, output_type="latent",
    )  # fmt: skip
    return int(seen[-1][0].sum()), int((encoded[-1][0, 0, 0] == 0).sum())


found = {left: drawn(left) for left in range(16, 24)}
print("diffusers", diffusers.__version__, "columns drawn and pixels cut out, by the left edge of a stroke of 6:", found)
assert all(cut == 6 for _, cut in found.values()), "the stroke is not cut out of the picture"
assert drawn(16, 8)[0] == 1 and drawn(17, 8)[0] == 1, "a stroke of 8 pixels is lost or grows"
assert [columns for columns, _ in found.values()] == [1, 0, 0, 1, 1, 1, 1, 1], "it behaves otherwise now"
PY
