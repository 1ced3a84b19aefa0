"""Do perturbed-attention guidance, FreeU and CFG++ give what their references give?"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPAGPipeline, StableDiffusionPipeline
from torch import Tensor

from reverie.diffusion.denoiser import denoiser
from reverie.errors import ReverieError
from reverie.generate.image import passes, picture_run
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load
from reverie.requests.pictures import TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
SEED = 7
FREEU = (1.5, 1.6, 0.9, 0.2)


@pytest.fixture(scope="module")
def system(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path]:
    """Give a tiny system with three levels, and the folder that it lies in."""
    config = replace(tiny.unet.config, block_out_channels=(8, 8, 16), transformer_depth=(1, 1, 0), num_heads=(2, 2, 2))
    torch.manual_seed(0)
    made, folder = replace(tiny, unet=UNet(config).eval()), tmp_path_factory.mktemp("guided")
    for parameter in made.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made.save(folder)
    return load(folder, device="cpu"), folder


def draw(system: Pipeline, **changes: object) -> Tensor:
    """Draw latents, and decode them without rounding to eight bits."""
    plain = {"prompt": "a bear", "seed": SEED, "steps": 4, "guidance": 6.0, "width": 64, "height": 64}
    asked = TextToImage.of({**plain, "sampler": "ddim", "schedule": "ddim", **changes})
    with picture_run(system, asked) as run, torch.no_grad():
        *_, (last, _) = passes(run, [asked])
        return run.codec.decode(last.x)


def theirs(kind: type[StableDiffusionPipeline], folder: Path, freeu: bool = False, **asked: object) -> Tensor:
    pipeline = kind.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    if freeu:
        b1, b2, s1, s2 = FREEU
        pipeline.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(SEED))
    asked = {"latents": latents, "num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "pt", **asked}
    return pipeline("a bear", **asked).images * 2 - 1


def assert_alike(a: Tensor, b: Tensor, plain: Tensor) -> None:
    assert (a - b).abs().max() < 1e-4
    assert (a - plain).abs().max() > 3e-3


def test_perturbed_attention_guidance_is_diffusers(system: tuple[Pipeline, Path]) -> None:
    ours, folder = system
    b = theirs(StableDiffusionPAGPipeline, folder, pag_scale=3.0)
    assert_alike(draw(ours, perturbed_guidance=3.0), b, draw(ours))
    b = theirs(StableDiffusionPAGPipeline, folder, pag_scale=3.0, guidance_scale=0.0)
    alone = {"guidance": 1.0, "perturbed_guidance": 3.0}
    assert_alike(draw(ours, **alone), b, draw(ours, guidance=1.0))
    cached = [draw(ours, guidance=1.0, perturbed_guidance=scale, cache_steps=2) for scale in (3.0, 0.0)]
    assert (cached[0] - cached[1]).abs().max() > 1e-3
    without = replace(ours, unet=UNet(replace(ours.unet.config, mid_transformer_depth=0)).eval())
    with pytest.raises(ReverieError, match="this model has no attention in its middle to perturb"):
        draw(without, perturbed_guidance=3.0)


def test_freeu_is_diffusers(system: tuple[Pipeline, Path]) -> None:
    ours, folder = system
    plain = draw(ours)
    assert_alike(draw(ours, freeu=FREEU), theirs(StableDiffusionPipeline, folder, freeu=True), plain)
    assert torch.equal(draw(ours), plain)


def test_cfg_pp_takes_the_unconditional_noise_along(system: tuple[Pipeline, Path]) -> None:
    """The loop of the paper's algorithm 2, in the frame of noise levels."""
    ours, _ = system
    asked = {"guidance": 0.6, "sampler": "euler", "schedule": "karras"}
    request = TextToImage.of({"prompt": "a bear", "seed": SEED, "steps": 4, "width": 64, "height": 64, **asked})
    bound = [ours.network(ours.encode_prompt([text])) for text in ("", "a bear")]
    nothing, something = (denoiser(network, ours.schedule, ours.scalings) for network in bound)
    with picture_run(ours, request) as run, torch.no_grad():
        sigmas = run.passes[0].sigmas.tolist()
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(SEED))
        x = noise * (sigmas[0] ** 2 + 1) ** 0.5
        for sigma, following in pairwise(sigmas):
            u, c = nothing(x, sigma), something(x, sigma)
            x = u + 0.6 * (c - u) + following * (x - u) / sigma
        b = run.codec.decode(x)
    assert_alike(draw(ours, **asked, cfg_pp=True), b, draw(ours, **asked))
    with pytest.raises(ReverieError, match=r"guidance 6 is not possible with CFG\+\+; give 0 to 1, such as 0.6"):
        draw(ours, cfg_pp=True)
    with pytest.raises(ReverieError, match=r"CFG\+\+ is defined for ddim or euler without eta"):
        draw(ours, cfg_pp=True, sampler="dpmpp_2m")
