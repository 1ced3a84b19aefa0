"""Is a picture its request's alone, and can the work be watched and stopped?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from reverie.diffusion.denoiser import denoiser
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS as SOLVERS
from reverie.errors import ReverieError
from reverie.generate import image
from reverie.generate.conditioning import encode
from reverie.generate.modified import Modification
from reverie.generate.sample import guided_denoiser, noise_levels, sample
from reverie.pipeline import Pipeline
from reverie.requests.options import ImageToImageOptions, InpaintOptions, OutpaintOptions, TextToImageOptions
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.records import from_metadata
from reverie.requests.samplers import SAMPLERS

BEAR = TextToImage(prompt="a bear", negative="red", seed=7, steps=3)


def pixels(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def last_latents(system: Pipeline, request: TextToImage) -> list[torch.Tensor]:
    return [progress.latents for progress in system.stream(request) if progress.pictures]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_picture_k_is_that_of_seed_plus_k_alone_to_the_bit(tiny: Pipeline, sampler: str) -> None:
    request = BEAR.replace(sampler=sampler, count=2)
    together = last_latents(tiny, request)
    for k, latents in enumerate(together):
        assert torch.equal(latents, last_latents(tiny, request.only(k))[0])
    assert not torch.equal(together[0], together[1])


def test_batches_agree_but_for_rounding(tiny: Pipeline) -> None:
    request = image.fill_in(tiny, BEAR.replace(count=3, sampler="euler_ancestral"))
    drawn = [
        [one for one in image._draw(tiny, request, size, None, None, encode, Modification(tiny)) if one.pictures]
        for size in (1, 2)
    ]
    alone, batches = [one.latents for one in drawn[0]], drawn[1]
    assert [progress.seeds for progress in batches] == [(7, 8), (9,)]
    assert torch.allclose(torch.cat([progress.latents for progress in batches]), torch.cat(alone), atol=1e-4)


def test_a_picture_tells_how_to_make_it_alone(tiny: Pipeline) -> None:
    pictures = tiny.draw(BEAR.replace(count=2, width=40, height=24))
    again = tiny.draw(from_metadata(pictures[1]))
    assert from_metadata(pictures[1]) == BEAR.replace(seed=8, width=40, height=24, guidance=tiny.guidance)
    assert pixels(again) == pixels(pictures[1:])
    assert again[0].size == (40, 24)
    assert "Model: tiny" in again[0].info["parameters"]


def test_text_to_image_takes_the_fields_of_the_request(tiny: Pipeline) -> None:
    options = {
        "negative": "red",
        "seed": 7,
        "steps": 2,
        "guidance": 3.0,
        "width": 24,
        "height": 32,
        "count": 2,
        "sampler": "heun",
        "schedule": "exponential",
        "guidance_rescale": 0.5,
        "threshold": 0.9,
    }
    request = TextToImage(prompt="a bear", **options)
    assert pixels(tiny.text_to_image("a bear", **options)) == pixels(tiny.draw(request))
    assert from_metadata(tiny.text_to_image(steps=1)[0]).prompt == ""
    defaults = from_metadata(tiny.text_to_image("x", seed=1)[0])
    assert defaults == TextToImage(prompt="x", seed=1, width=32, height=32, guidance=tiny.guidance)


@pytest.mark.parametrize(
    ("request_type", "options", "arguments"),
    [
        (TextToImage, TextToImageOptions, {"prompt"}),
        (ImageToImage, ImageToImageOptions, {"prompt", "init"}),
        (Inpaint, InpaintOptions, {"prompt", "init", "mask"}),
        (Outpaint, OutpaintOptions, {"prompt", "init"}),
    ],
)
def test_methods_take_all_fields(request_type: type[TextToImage], options: type, arguments: set[str]) -> None:
    assert options.__annotations__.keys() | arguments == request_type.model_fields.keys()


def test_stream_counts_steps_over_all_pictures(tiny: Pipeline) -> None:
    events = list(tiny.stream(BEAR.replace(count=2)))
    assert [event.index for event in events] == list(range(6))
    assert {event.total for event in events} == {6}
    assert [event.seeds for event in events] == [(7,)] * 3 + [(8,)] * 3
    assert [len(event.pictures) for event in events] == [0, 0, 1, 0, 0, 1]
    previews = [event.preview()[0] for event in events]
    assert {preview.size for preview in previews} == {(32, 32)}
    assert previews[0].tobytes() != previews[1].tobytes()


def test_closing_the_stream_stops_the_work(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    forward = tiny.unet.forward

    def counted(*inputs: object, **told: object) -> object:
        nonlocal calls
        calls += 1
        return forward(*inputs, **told)

    monkeypatch.setattr(tiny.unet, "forward", counted)
    events = tiny.stream(BEAR)
    assert calls == 0
    next(events)
    events.close()
    assert calls == 1
    assert torch.is_grad_enabled()


def test_gradients_are_the_callers_affair_between_steps(tiny: Pipeline) -> None:
    for event in tiny.stream(BEAR):
        assert torch.is_grad_enabled()
        assert not event.latents.requires_grad


def test_guidance_of_one_leaves_the_negative_prompt_alone(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = tiny.unet.forward

    def measured(x: torch.Tensor, *inputs: object, **told: object) -> object:
        sizes.append(len(x))
        return forward(x, *inputs, **told)

    monkeypatch.setattr(tiny.unet, "forward", measured)
    plain = tiny.draw(BEAR.replace(guidance=1))
    assert sizes == [1, 1, 1]
    assert pixels(tiny.draw(BEAR.replace(guidance=1, negative="blue"))) == pixels(plain)
    assert pixels(tiny.draw(BEAR)) != pixels(plain)
    assert sizes[-3:] == [2, 2, 2]


def test_only_an_empty_negative_prompt_is_zero_and_both_are_told_the_size(
    tiny_xl: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []
    forward = tiny_xl.unet.forward

    def recorded(x: torch.Tensor, t: torch.Tensor, *told: torch.Tensor, guidance: None) -> torch.Tensor:
        seen.append(told)
        return forward(x, t, *told, guidance=guidance)

    monkeypatch.setattr(tiny_xl.unet, "forward", recorded)
    tiny_xl.draw(BEAR.replace(prompt="", negative="", steps=1, width=40, height=24))
    tokens, pooled, sizes = seen[0]  # the negative's row goes before the positive's
    assert tokens[0].eq(0).all()
    assert pooled[0].eq(0).all()
    assert tokens[1].ne(0).any()
    assert pooled[1].ne(0).any()
    assert sizes.tolist() == [[24, 40, 0, 0, 24, 40]] * 2


def denoised(system: Pipeline, request: TextToImage, sigma: float = 3.0) -> torch.Tensor:
    x = 3 * Noise([1], (4, 4, 4)).initial()
    with torch.no_grad():
        return guided_denoiser(system, request, encode(system, request), noise_levels(system, request))(x, sigma)


def test_the_denoiser_mixes_what_the_request_says(tiny: Pipeline) -> None:
    x = 3 * Noise([1], (4, 4, 4)).initial()
    with torch.no_grad():
        up, down = (
            denoiser(tiny.network(tiny.encode_prompt([text])), tiny.schedule, tiny.scalings)(x, 3.0)
            for text in ("a bear", "red")
        )
    guided = denoised(tiny, BEAR.replace(guidance=4))
    assert torch.allclose(guided, down + 4 * (up - down), atol=1e-4)
    assert not torch.allclose(denoised(tiny, BEAR.replace(guidance=4, guidance_rescale=1)), guided, atol=1e-3)
    clipped = denoised(tiny, BEAR.replace(guidance=100, threshold=0.5))
    assert denoised(tiny, BEAR.replace(guidance=100)).abs().max() > 3
    assert clipped.abs().max() <= 3 + 1e-5
    # A consistency model returns what it is given where there is no noise left.
    consistent = denoised(tiny, BEAR.replace(guidance=5, sampler="lcm"), sigma=tiny.schedule.sigma_min)
    assert torch.allclose(consistent, x, rtol=1e-3)


def test_sampling_can_start_from_an_image(tiny: Pipeline) -> None:
    request, init = image.fill_in(tiny, BEAR), torch.ones(1, 4, 4, 4)
    sigmas = torch.tensor([0.01, 0.0], dtype=torch.float64)
    denoise = guided_denoiser(tiny, request, encode(tiny, request), sigmas)
    *_, step = sample(denoise, sigmas, Noise([1], (4, 4, 4)), SOLVERS["euler"], init)
    assert (step.x - init).abs().max() < 0.2


@pytest.mark.parametrize("kind", ["tiny_v", "tiny_xl"])
def test_other_kinds_draw(kind: str, request: pytest.FixtureRequest) -> None:
    system = request.getfixturevalue(kind)
    pictures = system.draw(BEAR.replace(count=2, schedule="trailing", negative=""))
    assert len(set(pixels(pictures))) == 2


def test_half_precision_draws(make_system: Callable[..., Pipeline]) -> None:
    system = make_system()
    full = system.draw(BEAR)[0]
    for part in (system.unet, system.autoencoder, *system.text_encoders):
        part.to(torch.bfloat16)
    half = system.draw(BEAR)[0]
    a, b = (torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() for picture in (full, half))
    assert (a - b).abs().mean() < 8


def test_sizes_that_do_not_fit_are_refused_before_any_work(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny.codec.autoencoder), "factor", 16)
    with pytest.raises(ReverieError, match=r"^width 40 is not a multiple of 16; the nearest are 32 or 48$"):
        tiny.stream(BEAR.replace(width=40))


def test_noise_levels_are_the_schedules(tiny: Pipeline) -> None:
    sigmas = noise_levels(tiny, BEAR.replace(schedule="trailing", steps=5))
    assert len(sigmas) == 6
    assert sigmas[0].item() == pytest.approx(14.614641)
