"""A film from inverted pictures starts and ends in them, with tiny models in the shapes of SD 1, 2 and XL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reverie.animation.blend import invert_picture
from reverie.diffusion.inversion import INVERTERS, Inverted
from reverie.diffusion.noise import Noise
from reverie.diffusion.schedule import to_vp
from reverie.diffusion.step import Sigmas
from reverie.errors import ReverieError
from reverie.generate import conditioning
from reverie.generate.conditioning import Prompts
from reverie.generate.sample import guided_denoiser, noise_levels
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage

SYSTEMS = ("tiny", "tiny_v", "tiny_xl")
REQUEST = TextToImage(prompt="a bear", negative="an apple", seed=1, steps=6, guidance=3.0, width=32, height=32)


@pytest.fixture
def system(request: pytest.FixtureRequest) -> Pipeline:
    return request.getfixturevalue(request.param)


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Two pictures of 32 pixels: a red disc on blue, and a slope from black to white."""
    y, x = np.mgrid[:32, :32]
    disc = ((x - 12) ** 2 + (y - 18) ** 2 < 80)[..., None]
    slope = np.repeat(((x + y) * 4).astype(np.uint8)[..., None], 3, axis=2)
    return [
        Image.fromarray(np.where(disc, (220, 40, 30), (30, 60, 200)).astype(np.uint8)),
        Image.fromarray(slope),
    ]


def draw(system: Pipeline, prompts: Prompts, sigmas: Sigmas, start: Inverted, inversion: str) -> Tensor:
    denoise = guided_denoiser(system, REQUEST, prompts, sigmas)
    noise = Noise([0], start.x.shape[1:])
    with torch.no_grad():
        for step in INVERTERS[inversion].down(denoise, start.x, sigmas, noise, start.past):
            x = step.x
    return to_vp(x, sigmas[-1].item())


def decibels(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / max((a - b).square().mean().item(), 1e-30))


@pytest.mark.parametrize("system", SYSTEMS, indirect=True)
def test_edict_draws_the_pictures_again(system: Pipeline, pictures: list[Image.Image]) -> None:
    prompts, sigmas = conditioning.encode(system, REQUEST), noise_levels(system, REQUEST)
    for picture in pictures:
        start = invert_picture(system, system.codec, REQUEST, prompts, sigmas, picture)
        latents = system.codec.encode([picture])
        drawn = draw(system, prompts, sigmas, start, "edict")
        assert decibels(drawn, latents) > 60
        there, back = (np.asarray(system.codec.pictures(z)[0], dtype=int) for z in (latents, drawn.float()))
        assert np.abs(there - back).max() <= 1


def test_the_middle_of_two_pictures_is_neither_and_its_ends_are_both(
    tiny: Pipeline, pictures: list[Image.Image]
) -> None:
    prompts, sigmas = conditioning.encode(tiny, REQUEST), noise_levels(tiny, REQUEST)
    a, b = (invert_picture(tiny, tiny.codec, REQUEST, prompts, sigmas, picture) for picture in pictures)
    ends = [tiny.codec.encode([picture]) for picture in pictures]
    near = [decibels(draw(tiny, prompts, sigmas, a.between(b, w), "edict"), ends[round(w)]) for w in (0.0, 1.0)]
    middle = draw(tiny, prompts, sigmas, a.between(b, 0.5), "edict")
    assert min(near) > 60
    assert middle.isfinite().all()
    assert max(decibels(middle, end) for end in ends) < 40


def test_what_is_drawn_differs_where_the_prompt_does(tiny: Pipeline, pictures: list[Image.Image]) -> None:
    """The noise belongs to its prompts: others draw another picture from it."""
    prompts, sigmas = conditioning.encode(tiny, REQUEST), noise_levels(tiny, REQUEST)
    start = invert_picture(tiny, tiny.codec, REQUEST, prompts, sigmas, pictures[0])
    others = conditioning.encode(tiny, REQUEST.replace(prompt="an apple", negative=""))
    latents = tiny.codec.encode([pictures[0]])
    assert decibels(draw(tiny, prompts, sigmas, start, "edict"), latents) > 60
    assert decibels(draw(tiny, others, sigmas, start, "edict"), latents) < 50


def test_levels_that_begin_low_invert_part_of_the_way(tiny: Pipeline, pictures: list[Image.Image]) -> None:
    prompts, sigmas = conditioning.encode(tiny, REQUEST), noise_levels(tiny, REQUEST)[-4:]
    start = invert_picture(tiny, tiny.codec, REQUEST, prompts, sigmas, pictures[0])
    assert decibels(draw(tiny, prompts, sigmas, start, "edict"), tiny.codec.encode([pictures[0]])) > 60


def test_an_unknown_inversion_is_named_before_any_work(tiny: Pipeline, pictures: list[Image.Image]) -> None:
    prompts, sigmas = conditioning.encode(tiny, REQUEST), noise_levels(tiny, REQUEST)
    with pytest.raises(ReverieError, match=r"unknown inversion 'null'; choose from ddim, edict"):
        invert_picture(tiny, tiny.codec, REQUEST, prompts, sigmas, pictures[0], "null")
    with pytest.raises(ReverieError, match="is not a multiple of 8"):
        invert_picture(tiny, tiny.codec, REQUEST, prompts, sigmas, pictures[0].resize((30, 32)))
