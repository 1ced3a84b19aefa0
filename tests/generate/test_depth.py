"""Do models that draw by a depth map draw what diffusers' Depth2Img draws, and say what they are for?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionDepth2ImgPipeline
from PIL import Image

from reverie.errors import ReverieError
from reverie.generate.image import fill_in, passes, picture_run
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load
from reverie.requests.pictures import ImageToImage, TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
RANDOM = np.random.default_rng(0)
PICTURE = Image.fromarray(RANDOM.integers(0, 256, (32, 48, 3), dtype=np.uint8))
DEPTH = Image.fromarray(RANDOM.integers(40, 200, (32, 48), dtype=np.uint8))
PLAIN = {"prompt": "a bear", "seed": 7, "steps": 4, "guidance": 6.0, "sampler": "ddim", "schedule": "ddim"}


@pytest.fixture(scope="module")
def deep(tiny: Pipeline) -> Pipeline:
    torch.manual_seed(1)
    return replace(tiny, unet=UNet(replace(tiny.unet.config, in_channels=5)).eval())


def test_draws_what_diffusers_draws(deep: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep.save(tmp_path)
    system = load(tmp_path, device="cpu")
    pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(
        tmp_path, depth_estimator=None, feature_extractor=None, torch_dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    module = sys.modules[StableDiffusionDepth2ImgPipeline.__module__]
    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode())  # as ours
    request = ImageToImage.of({**PLAIN, "init": PICTURE, "depth": DEPTH, "strength": 0.75, "negative": "blue"})
    request = fill_in(system, request)
    with picture_run(system, request) as run, torch.no_grad():
        *_, (last, _) = passes(run, [request])
        ours = run.codec.decode(last.x)
    theirs = pipeline(
        "a bear",
        image=PICTURE,
        depth_map=torch.from_numpy(np.asarray(DEPTH, dtype=np.float32))[None],
        strength=0.75,
        negative_prompt="blue",
        num_inference_steps=4,
        guidance_scale=6.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="pt",
    ).images
    assert theirs.std() > 0.01
    assert (ours - (theirs * 2 - 1)).abs().max() < 1e-4


def test_a_map_says_the_size(deep: Pipeline) -> None:
    assert deep.draw(TextToImage.of({**PLAIN, "depth": DEPTH}))[0].size == DEPTH.size
    larger = deep.draw(TextToImage.of({**PLAIN, "depth": DEPTH, "hires": {"scale": 2.0, "strength": 0.5}}))
    assert larger[0].size == (96, 64)


def test_what_does_not_go_is_said(tiny: Pipeline, deep: Pipeline) -> None:
    with pytest.raises(ReverieError, match="tiny draws by a depth map; give a picture of one as `depth`"):
        deep.draw(TextToImage.of(PLAIN))
    with pytest.raises(ReverieError, match="tiny takes no depth map; leave out `depth`"):
        tiny.draw(TextToImage.of({**PLAIN, "depth": DEPTH}))
    with pytest.raises(ReverieError, match="draws whole pictures by a depth map; leave out the mask"):
        deep.inpaint("a bear", PICTURE, DEPTH)
