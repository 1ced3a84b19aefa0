#!/usr/bin/env bash
# diffusers 0.42.1: in a Stable Diffusion pipeline, TCDScheduler draws no noise between its steps unless eta is given.
#
# TCDScheduler.step() has eta = 0.3 by default, so a loop of one's own draws fresh noise at every step but the last. The
# pipeline's own eta has the default 0, is handed on to every scheduler whose step() takes one, and so overrides it: two
# pictures that differ in the noise of their steps alone are the same to the bit, and other ones than the loop gives. Say
# eta=0.3 to the pipeline to get what the scheduler promises. Seen: 29 November 2026.
# What reverie does: `tcd` draws with the eta of the request, 0.3 where none is given (docs/guide/few-steps.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import diffusers, inspect, torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, TCDScheduler, UNet2DConditionModel

diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
pipeline = StableDiffusionPipeline(
    vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4), unet=unet,
    scheduler=TCDScheduler(steps_offset=1), text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
    requires_safety_checker=False,
)
pipeline.set_progress_bar_config(disable=True)
start = torch.randn(1, 4, 8, 8)
prompt = torch.zeros(1, 4, 8)


def drawn(seed: int, **given: float) -> torch.Tensor:
    """Draw from one start with the noise of a seed between the steps."""
    return pipeline(
        prompt_embeds=prompt, guidance_scale=1, num_inference_steps=4, height=8, width=8, output_type="latent",
        latents=start.clone(), generator=torch.Generator().manual_seed(seed), **given,
    ).images


def looped(seed: int) -> torch.Tensor:
    """Do the same with step() as it stands."""
    scheduler, generator, x = TCDScheduler(steps_offset=1), torch.Generator().manual_seed(seed), start.clone()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        with torch.no_grad():
            predicted = unet(x, t, encoder_hidden_states=prompt).sample
        x = scheduler.step(predicted, t, x, generator=generator).prev_sample
    return x


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


promised = inspect.signature(TCDScheduler.step).parameters["eta"].default
silent, loud = apart(drawn(1), drawn(2)), apart(looped(1), looped(2))
named = apart(drawn(1, eta=promised), looped(1))
print("diffusers", diffusers.__version__, "step's eta", promised)
print("two seeds of noise: pipeline", silent, "loop", loud, "| pipeline with eta beside the loop", named)
assert promised == 0.3, "the scheduler's default changed"
assert silent == 0 and loud > 0.1, "the pipeline leaves the scheduler its eta now"
assert named < 1e-5, "they differ by more than eta"
PY
