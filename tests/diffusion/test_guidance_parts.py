"""Do masks keep what they hide, and does the sampler go on where another model takes over?"""

from __future__ import annotations

import math

import pytest
import torch

from reverie.diffusion.guidance import concatenate_channels, hold_known, switch_at
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import scaled_linear
from reverie.diffusion.spacings import karras

SHAPE = (4, 6, 6)
MASK = torch.zeros(1, 1, 6, 6)
MASK[..., :3] = 1


def shrunk(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return x / (1 + sigma**2)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("below", [math.inf, 14.0])
def test_what_the_mask_hides_is_kept_to_the_bit(sampler: str, below: float) -> None:
    noise, known = Noise([1], SHAPE), torch.randn(1, *SHAPE)
    denoise = hold_known(shrunk, MASK, known, noise.initial(), below)
    sigmas = karras(scaled_linear(), 6)
    *_, last = SAMPLERS[sampler](denoise, known + sigmas[0].item() * noise.initial(), sigmas, noise)
    hidden = MASK.expand_as(known) == 0
    assert torch.equal(last.denoised[hidden], known[hidden])
    assert torch.allclose(last.x[hidden], known[hidden], atol=1e-4)
    assert not torch.allclose(last.x[~hidden], known[~hidden], atol=0.1)


def test_the_denoiser_sees_the_known_under_the_noise() -> None:
    seen: list[torch.Tensor] = []

    def recorded(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    x, known, eps = torch.randn(3, 1, *SHAPE)
    hold_known(recorded, MASK, known, eps, 3.0)(x, 2.0)
    hold_known(recorded, MASK, known, eps, 3.0)(x, 3.0)
    assert torch.equal(seen[0][..., 3:], (known + 2 * eps)[..., 3:])
    assert torch.equal(seen[0][..., :3], x[..., :3])
    assert torch.equal(seen[1], x)


def test_further_channels_are_repeated_over_the_rows() -> None:
    seen: list[torch.Tensor] = []

    def recorded(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x[:, :4]

    extra = torch.randn(2, 5, 6, 6)
    concatenate_channels(recorded, extra)(torch.zeros(6, *SHAPE), torch.zeros(6))
    assert torch.equal(seen[0][:, 4:], torch.cat([extra] * 3))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "lms", "heun"])
def test_handing_over_to_the_same_model_changes_nothing(sampler: str) -> None:
    sigmas, noise = karras(scaled_linear(), 8), Noise([1], SHAPE)
    x = sigmas[0].item() * noise.initial()
    asked: list[float] = []

    def second(x: torch.Tensor, sigma: float) -> torch.Tensor:
        asked.append(sigma)
        return shrunk(x, sigma)

    *_, alone = SAMPLERS[sampler](shrunk, x, sigmas, noise)
    *_, both = SAMPLERS[sampler](switch_at(shrunk, second, 0.5), x, sigmas, noise)
    assert torch.equal(both.x, alone.x)
    assert asked
    assert max(asked) < 0.5
