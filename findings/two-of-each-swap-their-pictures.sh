#!/usr/bin/env bash
# diffusers 0.42.1: two prompts with a picture each, two drawn of each: half are drawn from the other prompt's picture.
#
# num_images_per_prompt repeats prompts one by one (A A B B) and start pictures as a whole (a b a b): StableDiffusionImg2Img-,
# Inpaint- and InstructPix2PixPipeline draw A from a, A from b, B from a and B from b. With one of each prompt, or one picture
# for all, nothing is amiss, and shapes fit always. (`prepare_latents`, `prepare_mask_latents`, `prepare_image_latents`.)
# Seen: 30 November 2026. What reverie does: a request has one start picture, and all that it asks for are drawn from that.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import warnings

import diffusers, torch
from diffusers import (
    AutoencoderKL, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel,
)

warnings.simplefilter("ignore")
diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
prompts = torch.stack([torch.zeros(3, 8), torch.ones(3, 8)])
pictures = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.9)])
masks = torch.zeros(2, 1, 8, 8)
masks[:, :, 2:6, 2:6] = 1


def told(kind: type, channels: int, masked: bool = False, **settings: float) -> list[str]:
    """Draw two pictures of each prompt, and give by which prompt and picture alone each of the four comes out so."""
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    )
    pipeline = kind(
        vae=vae, unet=unet, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def drawn(prompt: slice, picture: slice, each: int) -> torch.Tensor:
        count = len(prompts[prompt]) * each
        mask = {"mask_image": masks[picture], "height": 8, "width": 8} if masked else {}
        return pipeline(
            prompt_embeds=prompts[prompt], image=pictures[picture], num_images_per_prompt=each, guidance_scale=1,
            num_inference_steps=6, generator=[torch.Generator().manual_seed(7) for _ in range(count)], output_type="latent",
            **mask, **settings,
        ).images

    alone = {
        "AB"[p] + "ab"[i]: drawn(slice(p, p + 1), slice(i, i + 1), 1)[0] for p in (0, 1) for i in (0, 1)
    }
    both, names = drawn(slice(0, 2), slice(0, 2), 2), []
    for latents in both:
        name, error = min(((name, (one - latents).abs().max().item()) for name, one in alone.items()), key=lambda pair: pair[1])
        assert error < 1e-3
        names.append(name)
    return names


found = {
    "img2img": told(StableDiffusionImg2ImgPipeline, 4, strength=0.5),
    "inpaint": told(StableDiffusionInpaintPipeline, 9, masked=True, strength=1.0),
    "InstructPix2Pix": told(StableDiffusionInstructPix2PixPipeline, 8),
}
print("diffusers", diffusers.__version__, "prompts A A B B are drawn from:", found)
assert all(names == ["Aa", "Ab", "Ba", "Bb"] for names in found.values()), "each prompt has its own picture now"
PY
