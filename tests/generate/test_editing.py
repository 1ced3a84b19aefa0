"""Do models that edit pictures draw what diffusers' InstructPix2Pix draws, and say what they are for?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from PIL import Image
from torch import Tensor

from reverie.diffusion.denoiser import PARAMETERISATIONS
from reverie.errors import ReverieError
from reverie.generate.canvas import prepare
from reverie.generate.image import fill_in, passes, picture_run
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
SEED = 7
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def editing(system: Pipeline) -> Pipeline:
    """Give a system whose U-Net also takes a picture's latents."""
    torch.manual_seed(1)
    return replace(system, unet=UNet(replace(system.unet.config, in_channels=8)).eval())


def request(**changes: object) -> ImageToImage:
    plain = {"prompt": "a bear", "negative": "blue", "init": PICTURE, "seed": SEED, "steps": 4, "guidance": 6.0}
    return ImageToImage.of({**plain, "sampler": "ddim", "schedule": "ddim", **changes})


def drawn(system: Pipeline, asked: ImageToImage) -> Tensor:
    """Draw without rounding to eight bits."""
    asked = fill_in(system, asked)
    with picture_run(system, asked) as run, torch.no_grad():
        *_, (last, _) = passes(run, [asked])
        return run.codec.decode(last.x)


@pytest.fixture
def systems(tiny: Pipeline, tiny_xl: Pipeline) -> dict[str, Pipeline]:
    return {"tiny": tiny, "tiny_xl": tiny_xl}


KINDS = {"tiny": StableDiffusionInstructPix2PixPipeline, "tiny_xl": StableDiffusionXLInstructPix2PixPipeline}


@pytest.mark.parametrize("name", KINDS)
def test_draws_what_diffusers_draws(name: str, systems: dict[str, Pipeline], tmp_path: Path) -> None:
    editing(systems[name]).save(tmp_path)
    system = load(tmp_path, device="cpu")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert type(pipeline) is KINDS[name]
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn((1, 4, 4, 4), generator=torch.Generator("cpu").manual_seed(SEED))
    guidance = {"guidance_scale": 6.0, "image_guidance_scale": 1.7, "num_inference_steps": 4}
    b = pipeline("a bear", image=PICTURE, negative_prompt="blue", latents=latents, output_type="pt", **guidance).images
    a = drawn(system, request(image_guidance=1.7))
    assert b.std() > 0.01
    assert (a - (b * 2 - 1)).abs().max() < 1e-3
    assert (drawn(system, request(image_guidance=1.0)) - a).abs().max() > 1e-3


def test_what_is_left_open_is_the_model_s(tiny: Pipeline) -> None:
    system = editing(tiny)
    filled = fill_in(system, request())
    assert (filled.strength, filled.image_guidance) == (1.0, 1.5)
    assert fill_in(system, request(strength=0.5)).strength == 0.5
    assert fill_in(tiny, request()).image_guidance is None


def test_the_picture_is_seen_as_the_network_learned_it(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    """Unscaled, but for CosXL Edit; without guidance by the picture it is seen all the same."""
    for system, cosxl in ((tiny, False), (replace(tiny_xl, schedule_config=PARAMETERISATIONS["edm_v"]), True)):
        model = editing(system)
        canvas = prepare(model, model.codec, fill_in(model, request()))
        latents = model.codec.encode([PICTURE])
        scale = 1.0 if cosxl else model.autoencoder.config.scaling_factor
        torch.testing.assert_close(canvas.extra, latents / scale)
    other = Image.new("RGB", PICTURE.size)
    plain = {"guidance": 1.0, "image_guidance": 1.0}
    system = editing(tiny)
    assert (drawn(system, request(**plain)) - drawn(system, request(init=other, **plain))).abs().max() > 1e-3


def test_a_second_pass_and_a_mask(tiny: Pipeline) -> None:
    system = editing(tiny)
    assert drawn(system, request(hires={"scale": 2.0, "strength": 0.5})).shape == (1, 3, 64, 64)
    mask = Image.new("L", PICTURE.size)
    mask.paste(255, (0, 0, 16, 32))
    picture = system.inpaint("a bear", PICTURE, mask, mask_blur=0, steps=2, seed=1)[0]
    ours, theirs = (np.asarray(one, dtype=int) for one in (picture, PICTURE))
    assert np.array_equal(ours[:, 16:], theirs[:, 16:])
    assert not np.array_equal(ours[:, :16], theirs[:, :16])


def test_what_does_not_go_is_said(tiny: Pipeline) -> None:
    system = editing(tiny)
    with pytest.raises(ReverieError, match="tiny edits pictures, and the prompt says what to change; give one as init"):
        system.draw(TextToImage(prompt="a bear"))
    with pytest.raises(ReverieError, match="tiny edits pictures, and continues none"):
        system.draw(Outpaint(init=PICTURE, left=8))
    with pytest.raises(ReverieError, match="tiny edits no pictures, as InstructPix2Pix does; leave out image_guidance"):
        tiny.draw(request(image_guidance=1.2))
    with pytest.raises(ReverieError, match="edits no pictures"):
        tiny.draw(Inpaint(init=PICTURE, mask=PICTURE, image_guidance=1.2))
