"""Do models that see pictures draw the variations and blends that diffusers draws, in pictures and after conversion?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImageVariationPipeline, StableUnCLIPImg2ImgPipeline
from PIL import Image
from torch import Tensor

from reverie.diffusion.denoiser import ScheduleConfig
from reverie.diffusion.noise import EmbeddingNoise, slerp
from reverie.diffusion.schedule import squared_cosine
from reverie.errors import ReverieError
from reverie.generate.canvas import embed_pictures
from reverie.generate.image import fill_in, passes, picture_run
from reverie.models.clip import CLIPVisionConfig, VisionTowerWithProjection
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline, load
from reverie.requests.films import Animation
from reverie.requests.pictures import TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
SEED, WIDTH = 7, 16
VISION = CLIPVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
PICTURE, OTHER = (Image.fromarray(pixels) for pixels in PIXELS)


def make_seeing(system: Pipeline, *, unclip: bool) -> Pipeline:
    """Give a system a vision tower, in the shape of unCLIP, or in place of its text encoder."""
    torch.manual_seed(1)
    vision = VisionTowerWithProjection(VISION, WIDTH).eval()
    if not unclip:
        return replace(system, tokenizers=(), text_encoders=(), image_encoder=vision)
    noise = EmbeddingNoise(torch.randn(WIDTH), torch.rand(WIDTH) + 0.5, squared_cosine())
    unet = UNet(replace(system.unet.config, projection_input_dim=2 * WIDTH)).eval()
    v = ScheduleConfig(prediction="v")
    return replace(system, unet=unet, image_encoder=vision, embedding_noise=noise, schedule_config=v)


def request(**changes: object) -> TextToImage:
    plain = {"vary": [PICTURE], "seed": SEED, "steps": 4, "guidance": 6.0, "sampler": "ddim", "schedule": "ddim"}
    return TextToImage.of({**plain, **changes})


def drawn(system: Pipeline, asked: TextToImage) -> Tensor:
    """Draw without rounding to eight bits."""
    asked = fill_in(system, asked)
    with picture_run(system, asked) as run, torch.no_grad():
        *_, (last, _) = passes(run, [asked])
        return run.codec.decode(last.x)


def their_draw(pipeline: object, *args: object, **kwargs: object) -> Tensor:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")  # type: ignore
    pipeline.set_progress_bar_config(disable=True)  # type: ignore
    latents = torch.randn((1, 4, 4, 4), generator=torch.Generator("cpu").manual_seed(SEED))
    steps = {"num_inference_steps": 4, "guidance_scale": 6.0, "latents": latents, "output_type": "pt"}
    return pipeline(*args, **steps, **kwargs).images * 2 - 1  # type: ignore


@pytest.fixture(scope="module")
def unclip(tiny: Pipeline) -> Pipeline:
    return make_seeing(tiny, unclip=True)


@pytest.fixture(scope="module")
def variations(tiny: Pipeline) -> Pipeline:
    return make_seeing(tiny, unclip=False)


@pytest.mark.parametrize("level", [0, 500])
def test_unclip_draws_what_diffusers_draws(level: int, unclip: Pipeline, tmp_path: Path) -> None:
    unclip.save(tmp_path)
    system = load(tmp_path, device="cpu")
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    noise = torch.Generator("cpu").manual_seed(SEED)
    words = {"prompt": "a bear", "negative_prompt": "blue", "noise_level": level, "generator": noise}
    theirs = their_draw(pipeline, PICTURE, **words)
    ours = drawn(system, request(prompt="a bear", negative="blue", noise_level=level))
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() < 1e-4


def test_image_variations_are_what_diffusers_draws(variations: Pipeline, tmp_path: Path) -> None:
    variations.save(tmp_path)
    pipeline = StableDiffusionImageVariationPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    theirs = their_draw(pipeline, PICTURE)
    assert theirs.std() > 0.01
    assert (drawn(load(tmp_path, device="cpu"), request()) - theirs).abs().max() < 1e-4


def test_blends_lie_between_the_pictures(unclip: Pipeline) -> None:
    a, b = (embed_pictures(unclip, request(vary=[one])) for one in (PICTURE, OTHER))
    assert a is not None
    assert b is not None
    blend = embed_pictures(unclip, request(vary=[{"image": PICTURE, "weight": 1}, {"image": OTHER, "weight": 3}]))
    torch.testing.assert_close(blend, slerp(a, b, 0.75))
    torch.testing.assert_close(embed_pictures(unclip, request(vary=[PICTURE, PICTURE])), a)


def test_every_picture_of_several_is_the_one_made_alone(unclip: Pipeline) -> None:
    asked = request(count=2, noise_level=300)
    both = unclip.draw(asked)
    alone = unclip.draw(request(seed=SEED + 1, noise_level=300))[0]
    assert np.array_equal(np.asarray(both[1]), np.asarray(alone))


def test_a_film_goes_through_the_blends(unclip: Pipeline) -> None:
    plain = {"seed": SEED, "steps": 3, "guidance": 6.0, "sampler": "ddim", "schedule": "ddim"}
    keyframes = [{"vary": PICTURE}, {"vary": OTHER}]
    frames = unclip.animate(Animation.of({**plain, "keyframes": keyframes, "frames": 3, "anchor": 0.0}), batch=1)
    for frame, vary in zip(frames, ([PICTURE], [PICTURE, OTHER], [OTHER]), strict=True):
        alone = unclip.draw(TextToImage.of({**plain, "vary": vary}))[0]
        assert np.abs(np.asarray(frame.picture, dtype=int) - np.asarray(alone, dtype=int)).max() <= 1


def test_what_does_not_go_is_said(tiny: Pipeline, unclip: Pipeline, variations: Pipeline) -> None:
    refused = {
        "tiny varies no pictures; give the bundled model": (tiny, {}),
        "tiny draws variations of pictures; give one as `vary`": (unclip, {"vary": []}),
        "reads no words; leave out the prompts": (variations, {"prompt": "a bear"}),
        "leave out the prompts, `regions` and `clip_skip`": (variations, {"clip_skip": 2}),
        "tiny does not noise what it sees; leave out `noise_level`": (variations, {"noise_level": 3}),
    }
    for text, (system, changes) in refused.items():
        with pytest.raises(ReverieError, match=text):
            system.draw(request(**changes))
    with pytest.raises(ReverieError, match="reads no words; leave out `explain`"):
        variations.explain(request())
