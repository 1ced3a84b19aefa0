#!/usr/bin/env bash
# DeepCache 0.1.1 with diffusers 0.42.1: image to image at another strength begins with features of the picture before.
#
# DeepCacheSDHelper computes the deep layers at every n-th step, counted from the step at which the first picture began, and
# never counts anew. Image to image begins where its strength says: after a picture at strength 0.9 (from step 1 of 10), one at
# 0.5 begins at step 5, which with an interval of 3 is no step to compute, so its first steps take what the cache holds: the deep
# features of the other picture, and of its prompt. The same call gives another result by what was drawn before it. disable()
# and enable() between pictures make it repeatable. Seen: 29 November 2026.
# What reverie does: every run of a sampler begins with an empty cache (docs/guide/speed.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 DeepCache==0.1.1
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import diffusers, torch
from DeepCache import DeepCacheSDHelper
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel

diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
pipeline = StableDiffusionImg2ImgPipeline(
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4), unet=unet, text_encoder=None,
    scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), tokenizer=None,
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
pipeline.set_progress_bar_config(disable=True)
helper = DeepCacheSDHelper(pipe=pipeline)
helper.set_params(cache_interval=3, cache_branch_id=0)


def drawn(strength: float, subject: float) -> torch.Tensor:
    return pipeline(
        image=torch.full((1, 3, 8, 8), 0.5), prompt_embeds=torch.full((1, 3, 8), subject), guidance_scale=1,
        num_inference_steps=10, strength=strength, generator=torch.Generator().manual_seed(7), output_type="latent",
    ).images


def after(*before: tuple[float, float]) -> torch.Tensor:
    """Draw one picture, the same each time, after others."""
    helper.enable()
    for strength, subject in before:
        drawn(strength, subject)
    found = drawn(0.5, 0.0)
    helper.disable()
    return found


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


alone = after()
again, equal = apart(after(), alone), apart(after((0.5, 1.0)), alone)
one, other = after((0.9, 1.0)), after((0.9, -1.0))
print("DeepCache", version("DeepCache"), "diffusers", diffusers.__version__, "repeated", again, "after one of equal strength", equal)
print("after one of strength 0.9:", apart(one, alone), "| of another prompt, beside that:", apart(one, other))
assert again == equal == 0, "it is not repeatable alone"
assert apart(one, alone) > 0.1 and apart(one, other) > 0.01, "a picture no longer begins with the one before"
PY
