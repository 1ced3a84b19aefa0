"""Is the U-Net steered by every part of a prompt, at the right steps? Against the formula, run by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from reverie.diffusion.denoiser import denoiser
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS, pick_sampler
from reverie.errors import ReverieError
from reverie.generate.conditioning import encode
from reverie.generate.sample import guided_denoiser, level_at, noise_levels, sample, step_at
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage
from reverie.system import Conditioning

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers, numpy 2

X = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def answer(system: Pipeline, conditioning: Conditioning, sigma: float = 2.0) -> Tensor:
    """Denoise X under one conditioning, without any guidance."""
    with torch.no_grad():
        return denoiser(system.network(conditioning), system.schedule, system.scalings)(X, sigma)


def asked(system: Pipeline, request: TextToImage, x: Tensor = X, sigma: float = 2.0) -> Tensor:
    with torch.no_grad():
        denoise = guided_denoiser(system, request, encode(system, request), noise_levels(system, request), len(x))
        return denoise(x, sigma)


@pytest.fixture(params=["sd", "v", "xl"])
def system(request: pytest.FixtureRequest, tiny: Pipeline, tiny_v: Pipeline, tiny_xl: Pipeline) -> Pipeline:
    return {"sd": tiny, "v": tiny_v, "xl": tiny_xl}[request.param]


def test_parts_add_up(system: Pipeline) -> None:
    """u + s sum of w_i (c_i - u), every term from a run of its own (Liu et al. 2022)."""
    request = TextToImage(prompt="a bear AND an apple :0.5 AND blue: -0.3", negative="next", guidance=4, seed=0)
    u = answer(system, system.encode_negative(["next"]))
    terms = ((1.0, "a bear"), (0.5, " an apple"), (-0.3, " blue"))
    wanted = u + 4 * sum(w * (answer(system, system.encode_prompt([text])) - u) for w, text in terms)
    torch.testing.assert_close(asked(system, request), wanted, atol=1e-4, rtol=1e-4)


def test_guidance_of_1_still_weighs_parts(tiny: Pipeline) -> None:
    request = TextToImage(prompt="a bear AND an apple", guidance=1, seed=0)
    u, *parts = (answer(tiny, tiny.encode_prompt([text])) for text in ("", "a bear", "an apple"))
    torch.testing.assert_close(asked(tiny, request), sum(parts) - u, atol=1e-5, rtol=1e-4)
    alone = asked(tiny, request.replace(prompt="a bear"))
    assert alone.equal(parts[0])


def test_a_part_of_another_weight_guides_more(tiny: Pipeline) -> None:
    heavy = asked(tiny, TextToImage(prompt="a bear : 2", guidance=3, seed=0))
    torch.testing.assert_close(
        heavy, asked(tiny, TextToImage(prompt="a bear", guidance=6, seed=0)), atol=1e-5, rtol=1e-4
    )


def test_shorter_parts_repeat_their_last_token(tiny: Pipeline) -> None:
    request = TextToImage(prompt="a bear AND a BREAK b", guidance=2, seed=0)
    bear, both = tiny.encode_prompt(["a bear"]).tokens, [tiny.encode_prompt([text]).tokens for text in ("a", "b")]
    filled = torch.cat([bear, bear[:, -1:].expand(-1, bear.shape[1], -1)], dim=1)
    parts = [answer(tiny, Conditioning(tokens)) for tokens in (filled, torch.cat(both, dim=1))]
    u = answer(tiny, tiny.encode_prompt([""]))
    torch.testing.assert_close(asked(tiny, request), u + 2 * (sum(parts) - 2 * u), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("prompt", "negative"), [("a BREAK b", "c"), ("c", "a BREAK b")])
def test_prompts_of_other_lengths_run_apart(tiny: Pipeline, prompt: str, negative: str) -> None:
    request = TextToImage(prompt=prompt, negative=negative, guidance=3, seed=0)
    prompts, seen = encode(tiny, request), []

    def bind(conditioning: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        seen.append(conditioning.tokens.shape[:2])
        return tiny.network(conditioning)

    with torch.no_grad():
        got = guided_denoiser(tiny, request, prompts, noise_levels(tiny, request), bind=bind)(X, 2.0)
    assert sorted(seen) == [(1, 12), (1, 24)]
    u, c = answer(tiny, prompts.negative.at(0)), answer(tiny, prompts.positive[0].at(0))
    torch.testing.assert_close(got, u + 3 * (c - u), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompt", ["a bear", "a bear AND an apple", "a BREAK b AND c"])
def test_rows_are_pictures(system: Pipeline, prompt: str) -> None:
    request = TextToImage(prompt=prompt, guidance=3, seed=0)
    x = torch.cat([X, X.flip(2), -X])
    for row, together in zip(x, asked(system, request, x), strict=True):
        torch.testing.assert_close(asked(system, request, row[None])[0], together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("sigma", "guided"), [(14.0, False), (2.0, True), (0.05, False)])
def test_guidance_may_act_on_a_part_of_the_way(tiny: Pipeline, sigma: float, guided: bool) -> None:
    request = TextToImage(prompt="a bear", guidance=4, guidance_interval=(0.1, 0.9), seed=0)
    u, c = (answer(tiny, encode_, sigma) for encode_ in (tiny.encode_negative([""]), tiny.encode_prompt(["a bear"])))
    wanted = u + 4 * (c - u) if guided else c
    torch.testing.assert_close(asked(tiny, request, sigma=sigma), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler])
def test_free_timesteps_are_visited_as_diffusers_does(tiny: Pipeline, scheduler: type) -> None:
    timesteps = (999, 749, 499, 20)
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    reference = scheduler(**betas)
    reference.set_timesteps(timesteps=list(timesteps))
    levels = noise_levels(tiny, TextToImage(prompt="a", timesteps=timesteps))
    torch.testing.assert_close(levels.float(), reference.sigmas.unique().flip(0), rtol=1e-5, atol=0)


def test_free_sigmas_are_visited_as_diffusers_does(tiny: Pipeline) -> None:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    reference = EulerDiscreteScheduler(**betas)
    reference.set_timesteps(sigmas=[14.6, 7.0, 2.0, 0.5, 0.0])
    request = TextToImage(prompt="a", sigmas=(14.6, 7, 2, 0.5, 0))
    levels = noise_levels(tiny, request)
    assert request.steps == 4
    torch.testing.assert_close(levels.float(), reference.sigmas)
    times = tiny.schedule.sigma_to_t(levels[:-1]).float()
    torch.testing.assert_close(times, reference.timesteps[:4], rtol=1e-4, atol=1e-2)


def test_timesteps_that_the_model_does_not_have_are_refused(tiny: Pipeline) -> None:
    with pytest.raises(ReverieError, match=r"timestep 1000 is not possible: .* has timesteps from 0 to 999"):
        noise_levels(tiny, TextToImage(prompt="a", timesteps=(1000, 3)))


def test_eta_and_the_model_s_schedule_reach_the_sampler(tiny: Pipeline, tiny_v: Pipeline) -> None:
    sampler = pick_sampler("tcd", tiny_v.schedule, 0.7)
    assert sampler.keywords == {"eta": 0.7, "schedule": tiny_v.schedule}
    assert pick_sampler("euler", tiny.schedule).keywords == {}


def test_fractions_of_the_way_are_timesteps(tiny: Pipeline) -> None:
    schedule = tiny.schedule
    assert level_at(schedule, 0) == torch.inf
    assert level_at(schedule, 1) == 0
    assert level_at(schedule, 0.8) == pytest.approx(schedule.sigmas[200].item())
    assert level_at(schedule, 0.8) < schedule.sigmas[200].item()


def test_steps_are_told_by_noise_levels() -> None:
    sigmas = torch.tensor([14.6, 5.0, 1.0, 0.1, 0.0], dtype=torch.float64)
    levels = {20: 0, 14.6: 0, 14.5999: 0, 9: 0, 5.00001: 1, 5: 1, 4.99999: 1, 3: 1, 1: 2, 0.5: 2, 0.1: 3, 0.05: 3, 0: 3}
    assert {sigma: step_at(sigmas, sigma) for sigma in levels} == levels
    assert step_at(sigmas, torch.tensor(5.0)) == 1
    assert step_at(sigmas.float(), torch.tensor(1.0, dtype=torch.float64)) == 2
    assert step_at(torch.tensor([torch.inf, 2.0, 0.0]), torch.inf) == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_meets_every_stage(tiny: Pipeline, sampler: str) -> None:
    """The alternating words of step n hold at the n-th level; no sampler leaves one out."""
    request = TextToImage(prompt="[a|b|bear|apple|next|blue]", steps=6, sampler=sampler, seed=0, guidance=1)
    prompts, sigmas = encode(tiny, request), noise_levels(tiny, request)
    names = {id(prompts.positive[0].at(step)): step for step in (5, 4, 3, 2, 0)}
    bound: list[int] = []

    def bind(conditioning: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        step = next(
            step for key, step in names.items() if conditioning.tokens.equal(prompts.positive[0].at(step).tokens)
        )
        bound.append(step)
        return lambda x, t: torch.zeros_like(x)

    noise = Noise([0], (4, 4, 4))
    list(sample(guided_denoiser(tiny, request, prompts, sigmas, bind=bind), sigmas, noise, SAMPLERS[sampler]))
    assert sorted(set(bound)) == [0, 2, 3, 4, 5]
    assert len(bound) == 5  # each is bound once
