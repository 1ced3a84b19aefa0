"""What every sampler promises, and the values that k-diffusion itself gives on a closed-form problem."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice

import pytest
import torch
from torch import Tensor

from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.spacings import karras
from reverie.errors import ReverieError, choose

STOCHASTIC = {
    "ddpm",
    "euler_ancestral",
    "dpm2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "lcm",
    "tcd",
}
EVALUATIONS = {  # of 8 steps, the last of which goes to sigma = 0
    "heun": 15,
    "dpm2": 15,
    "dpm2_ancestral": 15,
    "dpmpp_2s_ancestral": 15,
    "dpmpp_sde": 15,
    "plms": 9,
}

# k-diffusion at commit 4601bf085320592473f681a62808ed873d17fad5, its sample_* run in float64 on the problem below
# (torchsde and torchdiffeq stubbed; noise_sampler returned wave() call by call, and for sample_dpmpp_sde the noise over
# [sigma, next] was (sqrt(sigma - mid) first + sqrt(mid - next) second) / sqrt(sigma - next): one Brownian path).
K_DIFFUSION = {
    "euler": (0.611232909743, -0.784301696958, 0.389659086666, 0.087472446583),
    "euler_ancestral": (0.782273908422, 0.088298180828, -0.159882957696, 0.057937492226),
    "heun": (0.611418215509, -0.727249630373, 0.435908727493, 0.108124309642),
    "dpm2": (0.613506597026, -0.747269141226, 0.422893656126, 0.101500510964),
    "dpm2_ancestral": (0.640419633937, 0.204983336534, -0.247522268633, 0.065171216527),
    "lms": (0.613063188052, -0.766049197549, 0.402823821789, 0.092349754679),
    "dpmpp_2s_ancestral": (0.732198984943, 0.125947716865, -0.184827781110, 0.058682535648),
    "dpmpp_sde": (-0.063852142435, 0.031240369818, 0.085232665344, 0.057847920871),
    "dpmpp_2m": (0.619228742820, -0.767990965434, 0.412202740241, 0.095470295200),
    "dpmpp_2m_sde": (0.744388831706, -0.313506566726, -0.515610680721, 0.091352079182),
    "dpmpp_3m_sde": (0.632325736346, -0.907800174632, 0.148582994968, 0.900254207904),
}


def bent(x: Tensor, sigma: float) -> Tensor:
    """A nonlinear stand-in for a denoiser."""
    return torch.tanh(x / (1 + sigma)) + 0.1 * x / (1 + sigma**2)


class Waves:
    """Deterministic "noise": the k-th draw is 1.2 sin(12.9898 k (1, 2, 3, 4))."""

    def __init__(self) -> None:
        self.k = 0

    def next(self) -> Tensor:
        self.k += 1
        return 1.2 * torch.sin(torch.arange(1, 5, dtype=torch.float64) * 12.9898 * self.k).view(1, 4)


def karras_levels(steps: int = 8) -> Tensor:
    """Karras's levels from 14.614641 to 0.0291672, then 0."""
    high, low = 14.614641 ** (1 / 7), 0.0291672 ** (1 / 7)
    levels = (high + torch.linspace(0, 1, steps, dtype=torch.float64) * (low - high)) ** 7
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


START = torch.tensor([[10.0, -20.0, 5.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", K_DIFFUSION)
def test_samplers_give_the_values_of_k_diffusion(name: str) -> None:
    *_, last = SAMPLERS[name](bent, START, karras_levels(), Waves())
    expected = torch.tensor([K_DIFFUSION[name]], dtype=torch.float64)
    torch.testing.assert_close(last.x, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_count_up_to_the_last_level(name: str) -> None:
    sigmas = karras_levels()
    steps = list(SAMPLERS[name](bent, START, sigmas, Waves()))
    assert [step.index for step in steps] == list(range(8))
    assert all(step.total == 8 for step in steps)
    assert [step.sigma for step in steps] == sigmas[1:].tolist()
    assert all(step.denoised.shape == step.x.shape == START.shape for step in steps)
    torch.testing.assert_close(steps[0].denoised, bent(START, sigmas[0].item()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_denoiser_is_called_as_often_as_stated(name: str) -> None:
    seen: list[float] = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        return bent(x, sigma)

    list(SAMPLERS[name](counted, START, karras_levels(), Waves()))
    assert len(seen) == EVALUATIONS.get(name, 8)
    assert min(seen) > 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_stochastic_samplers_draw_noise_and_none_at_the_end(name: str, make_noise) -> None:
    noise = make_noise((1, 4))
    list(SAMPLERS[name](bent, START, karras_levels(), noise))
    assert noise.drawn == (0 if name not in STOCHASTIC else 14 if name == "dpmpp_sde" else 7)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("taken", [1, 2, 3, 5, 7])
def test_a_run_resumes_from_any_step(name: str, taken: int) -> None:
    sigmas, noise = karras_levels(), Waves()
    *_, whole = SAMPLERS[name](bent, START, sigmas, Waves())
    *_, half = islice(SAMPLERS[name](bent, START, sigmas, noise), taken)
    *_, rest = SAMPLERS[name](bent, half.x, sigmas[half.index + 1 :], noise, half.past)
    torch.testing.assert_close(rest.x, whole.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_leaves_its_start_alone(name: str) -> None:
    x = START.clone()
    list(SAMPLERS[name](bent, x, karras_levels(), Waves()))
    assert torch.equal(x, START)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_zero_is_the_denoised(name: str, no_noise) -> None:
    (step,) = SAMPLERS[name](bent, START, torch.tensor([14.6, 0.0]), no_noise)
    torch.testing.assert_close(step.x, bent(START, 14.6))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_may_end_above_zero(name: str) -> None:
    *_, last = SAMPLERS[name](bent, START, karras_levels()[:-1], Waves())
    assert last.sigma == pytest.approx(0.0291672)
    assert last.x.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_batch_do_not_meet(name: str, schedule) -> None:
    class Still:
        def next(self) -> Tensor:
            return torch.ones(1, 4)

    pair = torch.cat([START, -2 * START])
    sigmas = karras(schedule, 6)
    *_, together = SAMPLERS[name](bent, pair, sigmas, Still())
    for k in range(2):
        *_, alone = SAMPLERS[name](bent, pair[k : k + 1], sigmas, Still())
        torch.testing.assert_close(together.x[k : k + 1], alone.x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_float32_latent_stays_float32(name: str) -> None:
    class Still:
        def next(self) -> Tensor:
            return torch.ones(1, 4)

    *_, last = SAMPLERS[name](bent, START.float(), karras_levels(), Still())
    assert last.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("with_zero_eta", "deterministic"),
    [
        ("ddpm", "euler"),
        ("euler_ancestral", "ddim"),
        ("dpm2_ancestral", "dpm2"),
        ("dpmpp_2m_sde", "dpmpp_2m"),
        ("tcd", "ddim"),
    ],
)
def test_without_noise_the_stochastic_are_the_deterministic(with_zero_eta: str, deterministic: str, no_noise) -> None:
    *_, still = partial(SAMPLERS[with_zero_eta], eta=0.0)(bent, START, karras_levels(), no_noise)
    *_, expected = SAMPLERS[deterministic](bent, START, karras_levels(), no_noise)
    torch.testing.assert_close(still.x, expected.x)


@pytest.mark.parametrize("name", sorted(STOCHASTIC - {"lcm", "tcd"}))  # whose jumps do not shrink as steps grow
def test_stochastic_samplers_reach_the_mean_and_the_variance_of_the_data(name: str, gaussian, make_noise) -> None:
    count = 20_000
    noise = make_noise((count, 1))
    sigmas = torch.cat([torch.logspace(1, -2, 100, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = gaussian.mean + math.hypot(gaussian.deviation, 10) * noise.next()
    *_, last = SAMPLERS[name](gaussian.denoise, x, sigmas, noise)
    assert last.x.mean().item() == pytest.approx(gaussian.mean, abs=4 * gaussian.deviation / count**0.5)
    assert last.x.std().item() == pytest.approx(
        gaussian.deviation, rel=0.05
    )  # the first-order ones lose 3.5 % in 100 steps


def test_lcm_samples_from_a_consistency_function(gaussian, make_noise) -> None:
    noise = make_noise((20_000, 1))
    x = gaussian.mean + math.hypot(gaussian.deviation, 10) * noise.next()
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    *_, last = SAMPLERS["lcm"](lambda x, sigma: gaussian.flow(x, sigma, 0.0), x, sigmas, noise)
    assert last.x.mean().item() == pytest.approx(gaussian.mean, abs=0.015)
    assert last.x.std().item() == pytest.approx(gaussian.deviation, rel=0.03)


@pytest.mark.parametrize("levels", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -0.5], [math.nan, 0.0]])
def test_levels_that_do_not_fall_are_an_error(levels: list[float], no_noise) -> None:
    with pytest.raises(ReverieError, match="do not fall"):
        list(SAMPLERS["euler"](bent, START, torch.tensor(levels), no_noise))


def test_an_unknown_sampler_is_named_with_the_known() -> None:
    with pytest.raises(ReverieError, match=r"^unknown sampler 'eulr'; choose from ddpm, ddim, plms, euler, "):
        choose("sampler", "eulr", SAMPLERS)
    assert choose("sampler", "heun", SAMPLERS) is SAMPLERS["heun"]
