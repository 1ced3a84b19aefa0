"""Schedules against the published numbers (shared/numbers.md), diffusers' tables, and the round trip t <-> sigma."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from reverie.diffusion.schedule import (
    SCHEDULES,
    Schedule,
    linear,
    scaled_linear,
    squared_cosine,
    to_ve,
    to_vp,
    zero_terminal_snr,
)


def test_scaled_linear_has_the_published_ends(schedule: Schedule) -> None:
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-9)
    assert schedule.alphas_cumprod[999].item() == pytest.approx(0.00466010, abs=5e-9)
    assert schedule.sigma_min == pytest.approx(0.0291672, abs=5e-8)
    assert schedule.sigma_max == pytest.approx(14.614641, abs=5e-7)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (scaled_linear, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (linear, {"beta_schedule": "linear"}),
        (squared_cosine, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_tables_equal_those_of_diffusers(ours, theirs: dict) -> None:
    reference = DDPMScheduler(**theirs).alphas_cumprod.double()
    torch.testing.assert_close(ours().alphas_cumprod, reference, rtol=2e-4, atol=1e-8)  # theirs multiply in float32


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_the_start(schedule: Schedule) -> None:
    flawless = zero_terminal_snr(schedule)
    reference = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    torch.testing.assert_close(flawless.alphas_cumprod, reference, rtol=1e-3, atol=1e-6)
    assert flawless.alphas_cumprod[-1] == 0
    assert flawless.alphas_cumprod[0] == schedule.alphas_cumprod[0]
    assert flawless.sigma_max == pytest.approx(4096, abs=1e-3)  # diffusers: alphas_cumprod[-1] = 2**-24 to sample
    assert (flawless.sigmas.diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_t_and_sigma_are_inverse_to_each_other(name: str) -> None:
    schedule = SCHEDULES[name]()
    assert (schedule.sigmas.diff() > 0).all()
    t = torch.linspace(0, 999, 2345, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma_to_t(schedule.t_to_sigma(t)), t, rtol=0, atol=1e-8)
    torch.testing.assert_close(schedule.t_to_sigma(torch.arange(1000.0)), schedule.sigmas)


def test_sigma_beyond_the_table_is_held_at_its_ends(schedule: Schedule) -> None:
    assert schedule.sigma_to_t(0.0) == 0
    assert schedule.sigma_to_t(1e9) == 999
    assert schedule.t_to_sigma(2000.0) == pytest.approx(schedule.sigma_max)


def test_t_of_sigma_equals_that_of_diffusers(schedule: Schedule) -> None:
    reference = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    sigmas = torch.logspace(-1.4, 1.1, 37, dtype=torch.float64)
    expected = reference._sigma_to_t(sigmas.numpy(), schedule.sigmas.log().numpy())
    torch.testing.assert_close(schedule.sigma_to_t(sigmas), torch.from_numpy(expected))


def test_noising_agrees_with_diffusers_and_with_both_frames(schedule: Schedule) -> None:
    x0, eps, t = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5), torch.tensor([0, 500, 999])
    reference = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    x_vp = schedule.add_noise(x0, eps, t)
    assert x_vp.dtype == torch.float32
    torch.testing.assert_close(x_vp, reference.add_noise(x0, eps, t), rtol=1e-4, atol=1e-5)
    for k, sigma in enumerate(schedule.sigmas[t].tolist()):
        x = x0[k] + sigma * eps[k]
        torch.testing.assert_close(to_vp(x, sigma), x_vp[k], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(to_ve(x_vp[k], sigma), x, rtol=1e-5, atol=1e-5)


def test_snr_is_one_over_sigma_squared(schedule: Schedule) -> None:
    t = torch.tensor([0, 10, 999])
    torch.testing.assert_close(schedule.snr(t), schedule.sigmas[t].float() ** -2)
    assert zero_terminal_snr(schedule).snr(torch.tensor([999])) == 0
