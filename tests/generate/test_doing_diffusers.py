"""Do image to image and inpainting give what diffusers' pipelines give, from the same latents and the same noise?

The picture is given to diffusers as latents: its pipelines draw from the autoencoder's posterior, and we take its mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from torch import Tensor

from reverie.codecs.image import to_tensor
from reverie.generate.image import fill_in, picture_run
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.requests.pictures import ImageToImage, Inpaint

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
TOLERANCE = 1e-3  # on [-1, 1]
INIT = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
MASK = Image.new("L", (32, 32), 0)
MASK.paste(255, (8, 8, 24, 32))
FIELDS = {"prompt": "a bear next to an apple", "negative": "blue", "seed": 7, "steps": 6, "guidance": 4.0}
SCHEDULERS = {"euler": (EulerDiscreteScheduler, "leading"), "ddim": (DDIMScheduler, "ddim")}


@pytest.fixture(scope="module")
def inpainter(make_system: Callable[..., Pipeline]) -> Pipeline:
    system = make_system()
    torch.manual_seed(1)
    return replace(system, unet=UNet(replace(system.unet.config, in_channels=9)).eval())


def ours(system: Pipeline, request: ImageToImage) -> Tensor:
    """Draw without rounding to eight bits, and without laying the old picture over the new."""
    request = fill_in(system, request)
    with picture_run(system, request, None) as run, torch.no_grad():
        *_, last = run.steps(run.passes[0], [request], None)
        return system.codec.decode(last.x)


def theirs(pipeline: object, request: ImageToImage, image: Tensor, **options: object) -> Tensor:
    scheduler, _ = SCHEDULERS[request.sampler]
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        request.prompt,
        image=image,
        negative_prompt=request.negative,
        strength=request.strength,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
        **options,
    ).images
    return images * 2 - 1


def assert_same(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert a.std() > 0.01, "a picture without contrast proves nothing"
    assert (a - b).abs().max() < TOLERANCE


def test_image_to_image(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path)
    for sampler, strength in (("euler", 0.5), ("euler", 0.99), ("ddim", 0.5), ("ddim", 0.34)):
        schedule = SCHEDULERS[sampler][1]
        request = ImageToImage(**FIELDS, init=INIT, strength=strength, sampler=sampler, schedule=schedule)
        assert_same(ours(tiny, request), theirs(pipeline, request, tiny.codec.encode([INIT])))


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(channels: int, tiny: Pipeline, inpainter: Pipeline, tmp_path: Path) -> None:
    system = tiny if channels == 4 else inpainter
    system.save(tmp_path)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path)
    hidden = to_tensor([INIT]) * (to_tensor([MASK])[:, :1] < 0)
    options = {"mask_image": MASK, "masked_image_latents": system.codec.encode_tensor(hidden)}
    for strength in (0.5, 1.0):
        request = Inpaint(
            **FIELDS, init=INIT, mask=MASK, strength=strength, sampler="euler", schedule="leading", mask_blur=0
        )
        assert_same(ours(system, request), theirs(pipeline, request, system.codec.encode([INIT]), **options))
