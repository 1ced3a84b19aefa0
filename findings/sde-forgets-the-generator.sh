#!/usr/bin/env bash
# diffusers 0.42.1: with DPMSolverSDEScheduler, a pipeline given a seeded generator draws another picture every time.
#
# The pipeline hands its generator on only to schedulers whose step() has such an argument; this one's has none, and draws
# the noise of its steps (torchsde's Brownian tree) from a seed of torch's global generator. So the same call with the same
# generator differs. DPMSolverMultistepScheduler with "sde-dpmsolver++" takes the generator, and a seed as
# noise_sampler_seed in the scheduler's configuration makes this one repeatable too. Seen: 29 November 2026.
# What reverie does: each step's noise comes from the picture's own seed (diffusion/noise.py), for every sampler.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 torchsde==0.2.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, DPMSolverSDEScheduler
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def drawn(scheduler) -> torch.Tensor:
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=torch.zeros(1, 4, 8), guidance_scale=1, num_inference_steps=4, height=8, width=8,
        generator=torch.Generator().manual_seed(7), output_type="latent",
    ).images


def apart(make) -> float:
    return (drawn(make()) - drawn(make())).abs().max().item()


forgets = apart(lambda: DPMSolverSDEScheduler(**BETAS))
seeded = apart(lambda: DPMSolverSDEScheduler(**BETAS, noise_sampler_seed=7))
multistep = apart(lambda: DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"))
print("diffusers", diffusers.__version__, "two calls differ by", forgets, "seeded", seeded, "multistep", multistep)
assert forgets > 1, "the generator decides the noise of its steps now"
assert seeded == multistep == 0, "the others are no longer repeatable"
PY
