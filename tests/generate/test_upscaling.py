"""Do models that enlarge pictures draw what diffusers' x4 upscaler draws, and say what they are for?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionUpscalePipeline,
)
from PIL import Image
from torch import Tensor

from reverie.diffusion.denoiser import ScheduleConfig
from reverie.errors import ReverieError
from reverie.generate.explain import explain
from reverie.generate.image import fill_in, passes, picture_run
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder
from reverie.models.k_unet import KUNet, KUNetConfig
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load
from reverie.requests.pictures import ImageToImage, Inpaint, TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
SEED = 7
SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def upscaler(tiny: Pipeline) -> Pipeline:
    """Give a system whose U-Net sees pixels and their noise level, and latents of which each spans four pixels."""
    torch.manual_seed(1)
    crossed = replace(tiny.unet.config, in_channels=7, num_class_embeds=1000, only_cross_attention=(True, False))
    small = replace(AUTOENCODERS["x4-upscaler"], block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4)
    return replace(
        tiny,
        unet=UNet(crossed).eval(),
        autoencoder=Autoencoder(small).eval(),
        schedule_config=ScheduleConfig(beta_start=0.0001, beta_end=0.02, prediction="v"),
    )


@pytest.fixture(scope="module")
def doubler(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Give a system that doubles latents, as it is read from its folder."""
    torch.manual_seed(1)
    narrow = KUNetConfig(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        transformer_depth=(0, 1, 1),
        num_heads=(4, 8, 8),
        cross_attention_dim=16,
        condition_dim=128 + 16,
    )
    folder = tmp_path_factory.mktemp("doubler") / "doubler"
    replace(tiny, unet=KUNet(narrow).eval()).save(folder)
    return load(folder, device="cpu")


def request(**changes: object) -> ImageToImage:
    plain = {"prompt": "a bear", "negative": "blue", "init": PICTURE, "seed": SEED, "steps": 4, "guidance": 6.0}
    return ImageToImage.of({**plain, "sampler": "ddim", "schedule": "ddim", **changes})


def drawn(system: Pipeline, asked: ImageToImage) -> Tensor:
    """Draw without rounding to eight bits."""
    asked = fill_in(system, asked)
    with picture_run(system, asked) as run, torch.no_grad():
        *_, (last, _) = passes(run, [asked])
        return run.codec.decode(last.x)


@pytest.mark.parametrize("level", [None, 0, 350])
def test_the_same_seed_draws_what_diffusers_draws(level: int | None, upscaler: Pipeline, tmp_path: Path) -> None:
    """The noise of the picture is drawn from a seed before that of the latents, as there."""
    upscaler.save(tmp_path)
    system = load(tmp_path, device="cpu")
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    named = {} if level is None else {"noise_level": level}
    theirs = pipeline(
        "a bear",
        image=PICTURE,
        negative_prompt="blue",
        num_inference_steps=4,
        guidance_scale=6.0,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pt",
        **named,
    ).images
    ours = drawn(system, request(**named))
    assert ours.shape == (1, 3, 48, 64)
    assert theirs.std() > 0.01
    assert (ours - (theirs * 2 - 1)).abs().max() < 1e-4
    assert (ours - drawn(system, request(noise_level=100))).abs().max() > 1e-3


def test_doubled_latents_are_those_that_diffusers_gives(doubler: Pipeline, tmp_path: Path) -> None:
    doubler.save(tmp_path)
    pipeline = StableDiffusionLatentUpscalePipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.scheduler.set_timesteps(4)
    levels = tuple(pipeline.scheduler.sigmas.tolist())
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a bear",
        image=doubler.codec.encode([SMALL]),
        negative_prompt="blue",
        num_inference_steps=4,
        guidance_scale=6.0,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pt",
    ).images
    plain = {"prompt": "a bear", "negative": "blue", "init": SMALL, "seed": SEED, "guidance": 6.0}
    asked = ImageToImage.of({**plain, "sampler": "euler", "sigmas": levels})
    ours = drawn(doubler, asked)
    assert ours.shape == (1, 3, 64, 96)
    assert theirs.std() > 0.01
    assert (ours - (theirs * 2 - 1)).abs().max() < 1e-4
    assert (ours - drawn(doubler, asked.replace(prompt="an apple"))).abs().max() > 1e-3


def test_what_is_left_open_is_the_model_s(upscaler: Pipeline, doubler: Pipeline) -> None:
    asked = fill_in(doubler, ImageToImage.of({"init": PICTURE}))
    assert (asked.strength, asked.guidance, asked.width, asked.height) == (1.0, 1.0, 32, 24)
    filled = fill_in(upscaler, ImageToImage.of({"init": PICTURE}))
    assert (filled.strength, filled.guidance, filled.noise_level) == (1.0, 9.0, 20)
    assert (filled.width, filled.height) == (64, 48)
    odd = fill_in(upscaler, ImageToImage.of({"init": PICTURE.resize((21, 37))}))
    assert (odd.width, odd.height) == (88, 152)
    assert upscaler.draw(request(width=32, height=32, strength=0.5))[0].size == (32, 32)


def test_every_picture_of_several_is_the_one_made_alone(upscaler: Pipeline) -> None:
    both = upscaler.draw(request(count=2))
    alone = upscaler.draw(request(seed=SEED + 1))[0]
    assert np.array_equal(np.asarray(both[1]), np.asarray(alone))


def test_what_does_not_go_is_said(tiny: Pipeline, upscaler: Pipeline, doubler: Pipeline, ink: Path) -> None:
    refused = {
        "tiny enlarges pictures; give one as init": (upscaler, TextToImage(prompt="a bear")),
        "tiny enlarges whole pictures; leave out the mask": (upscaler, Inpaint(init=PICTURE, mask=PICTURE)),
        "`noise_level` is about a picture that is varied or enlarged": (upscaler, {"noise_level": 3}),
        "noise level 351 is not possible: tiny takes 0 to 350": (upscaler, request(noise_level=351)),
        "tiny does not noise what it sees; leave out `noise_level`": (tiny, request(noise_level=3)),
        r"doubler \[\w+\] does not noise what it sees": (doubler, request(noise_level=3)),
        r"doubler \[\w+\] enlarges pictures; give one as init": (doubler, TextToImage(prompt="a bear")),
        r"doubler \[\w+\] enlarges whole pictures": (doubler, Inpaint(init=PICTURE, mask=PICTURE)),
        r"doubler \[\w+\] doubles pictures by a U-Net of its own; leave out freeu": (
            doubler,
            request(freeu=(1.1, 1.2, 0.9, 0.2)),
        ),
        r"by a U-Net of its own; leave out refiner": (doubler, request(refiner={"model": "reverie-emoji"})),
        r"by a U-Net of its own; leave out tile": (doubler, request(tile="x")),
        "LoRAs are for the U-Nets of SD 1, 2 and XL": (doubler, request(loras=[str(ink)])),
    }
    for text, (system, asked) in refused.items():
        with pytest.raises(ReverieError, match=text):
            system.draw(TextToImage.of(asked) if isinstance(asked, dict) else asked)
    with pytest.raises(ReverieError, match=r"the attention of doubler .* is not recorded; leave out `explain`"):
        explain(doubler, request())


def test_what_a_doubler_predicts_is_not_to_choose(doubler: Pipeline, tmp_path: Path) -> None:
    doubler.save(tmp_path)
    with pytest.raises(ReverieError, match="doubles latents and is preconditioned as EDM's models; leave out pred"):
        load(tmp_path, device="cpu", prediction="v")
