"""Guidance combinators against their formulas, each other, and diffusers' rescaling and thresholding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from reverie.diffusion.denoiser import PREDICTIONS, denoiser
from reverie.diffusion.guidance import (
    apart,
    compose,
    consistency,
    dynamic_thresholding,
    guide,
    linear,
    linear_rescaled,
    together,
    within,
)
from reverie.diffusion.schedule import Schedule, to_vp


def test_guidance_at_zero_one_and_beyond() -> None:
    u, c = torch.randn(2, 3, 4, 2, 2).unbind()
    torch.testing.assert_close(linear(0.0)(u, c), u)
    torch.testing.assert_close(linear(1.0)(u, c), c)
    torch.testing.assert_close(linear(7.5)(u, c), u + 7.5 * (c - u))


def test_one_batched_call_equals_two_calls(schedule: Schedule) -> None:
    prompts = torch.randn(4, 1, 1, 1).double()
    calls = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls.append((len(x), len(t)))
        return torch.tanh(x * (prompts if len(x) == 4 else prompts[:2]) + t.view(-1, 1, 1, 1) / 1000)

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x * prompts[2:] + t.view(-1, 1, 1, 1) / 1000)

    x = 3 * torch.randn(2, 4, 2, 2).double()
    eps = PREDICTIONS["eps"].scalings
    once = denoiser(guide(together(network), linear(5.0)), schedule, eps)(x, 3.0)
    assert calls == [(4, 4)]
    twice = denoiser(guide(apart(network, conditional), linear(5.0)), schedule, eps)(x, 3.0)
    torch.testing.assert_close(once, twice)


def test_linear_guidance_of_networks_is_that_of_denoisers(schedule: Schedule) -> None:
    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(2 * x)

    for name in PREDICTIONS:
        scalings = PREDICTIONS[name].scalings
        x = 5 * torch.randn(2, 4, 2, 2).double()
        inside = denoiser(guide(apart(lambda x, t: x.sin(), conditional), linear(4.0)), schedule, scalings)
        pair = apart(denoiser(lambda x, t: x.sin(), schedule, scalings), denoiser(conditional, schedule, scalings))
        torch.testing.assert_close(inside(x, 5.0), guide(pair, linear(4.0))(x, 5.0))


def test_doubling_leaves_a_scalar_level_alone() -> None:
    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        return x * sigma

    x = torch.randn(2, 4, 2, 2)
    for sigma in (2.0, torch.tensor(2.0)):
        torch.testing.assert_close(guide(together(denoise), linear(3.0))(x, sigma), 2 * x)


def test_rescaling_equals_that_of_diffusers() -> None:
    u, c = torch.randn(2, 3, 4, 8, 8).unbind()
    expected = rescale_noise_cfg(linear(7.5)(u, c), c, guidance_rescale=0.7)
    torch.testing.assert_close(linear_rescaled(7.5, 0.7)(u, c), expected)
    torch.testing.assert_close(linear_rescaled(7.5, 0.0)(u, c), linear(7.5)(u, c))
    torch.testing.assert_close(linear_rescaled(7.5, 1.0)(u, c).std((1, 2, 3)), c.std((1, 2, 3)))


def test_thresholding_equals_that_of_diffusers() -> None:
    x0 = 3 * torch.randn(3, 4, 8, 8)
    x0[1] /= 10  # within bounds already
    reference = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=100.0)
    result = dynamic_thresholding(lambda x, sigma: x0, percentile=0.9)(x0, 1.0)
    torch.testing.assert_close(result, reference._threshold_sample(x0))
    assert result.abs().max() <= 1
    torch.testing.assert_close(dynamic_thresholding(lambda x, sigma: x0, percentile=0.9, bound=2.0)(x0, 1.0)[1], x0[1])


def test_consistency_holds_its_boundary_condition(schedule: Schedule) -> None:
    x = torch.randn(1, 4, 2, 2)
    denoise = consistency(lambda x, sigma: torch.zeros_like(x), schedule)
    torch.testing.assert_close(denoise(x, schedule.sigma_min), to_vp(x, schedule.sigma_min))  # t = 0: x itself
    assert denoise(x, schedule.sigma_max).abs().max() < 1e-7


def test_parts_are_joined_by_their_weights() -> None:
    """u + sum of w_i (c_i - u); one part of weight 1 is itself, to the bit."""
    u, first, second = (torch.full((1, 2), value) for value in (0.1, 0.7, -0.4))
    assert compose(u, [first], (1.0,)) is first
    torch.testing.assert_close(compose(u, [first], (2.0,)), torch.full((1, 2), 1.3))
    torch.testing.assert_close(compose(u, [first, second], (1.0, 0.5)), torch.full((1, 2), 0.45))


def test_parts_in_one_call_and_apart_agree() -> None:
    """The rows of a batch belong to nothing, the first part and the second; each has its own factor."""

    def factors(*values: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: x * torch.tensor(values).repeat_interleave(len(x) // len(values))[:, None] + t[:, None]

    x, t, weights = torch.randn(3, 2), torch.arange(3.0), (1.5, -0.5)
    once = together(factors(1, 2, 4), weights)(x, t)
    twice = apart(factors(1), factors(2, 4), weights)(x, t)
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(once[1], x * (1 + 1.5 * (2 - 1) - 0.5 * (4 - 1)) + t[:, None])


def test_guidance_acts_between_two_levels_alone() -> None:
    x = torch.zeros(1, 2)
    denoise = within(lambda x, sigma: x + 1, lambda x, sigma: x - 1, 5.0, 0.5)
    seen = {sigma: denoise(x, sigma)[0, 0].item() for sigma in (9.0, 5.1, 5.0, 2.0, 0.5, 0.4)}
    assert seen == {9.0: -1, 5.1: -1, 5.0: 1, 2.0: 1, 0.5: 1, 0.4: -1}
