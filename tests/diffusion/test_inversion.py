"""The way up undoes the way down: against diffusers' inverse of DDIM, EDICT's own equations, and round trips."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from reverie.diffusion.denoiser import Denoise, denoiser, eps_scalings, v_scalings
from reverie.diffusion.inversion import INVERTERS, MIX, Inverted, Inverter, edict, invert
from reverie.diffusion.noise import slerp
from reverie.diffusion.schedule import Schedule, scaled_linear, to_ve, to_vp, zero_terminal_snr
from reverie.diffusion.spacings import ddim, karras, leading, trailing
from reverie.diffusion.step import Sigmas

from .conftest import Gaussian, NoNoise, ToyNetwork


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def toy(network: ToyNetwork, schedule: Schedule) -> Denoise:
    return denoiser(network, schedule, eps_scalings)


def down(denoise: Denoise, start: Inverted, sigmas: Sigmas, inverter: Inverter) -> Tensor:
    for step in inverter.down(denoise, start.x, sigmas, NoNoise(), start.past):
        x = step.x
    return to_vp(x, sigmas[-1].item())


def decibels(a: Tensor, b: Tensor) -> float:
    """The peak signal-to-noise ratio of latents, whose range is taken as 2."""
    return 10 * math.log10(4 / (a - b).square().mean().item())


def test_ddim_up_is_diffusers_inverse_scheduler(network: ToyNetwork, toy: Denoise, latents: Tensor) -> None:
    oracle = DDIMInverseScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    oracle.set_timesteps(20)
    expected = latents
    for t in oracle.timesteps:
        eps = network(expected, torch.full((2,), float(t)))
        expected = oracle.step(eps, int(t), expected).prev_sample
    sigmas = ddim(scaled_linear(), 20)
    inverted = invert(toy, latents, sigmas, INVERTERS["ddim"])
    assert torch.allclose(to_vp(inverted.x, sigmas[0].item()), expected, rtol=1e-4, atol=1e-4)  # its tables are float32


def test_edict_is_what_its_paper_writes(schedule: Schedule, latents: Tensor) -> None:
    """Wallace et al. 2211.12446, in the frame of the network, with the sequences taking turns."""
    timesteps = [901, 701, 501, 301, 101]
    alphas = [schedule.alphas_cumprod[t].item() for t in timesteps] + [1.0]
    network = ToyNetwork()
    x = y = latents
    for index, t in enumerate(timesteps):
        now, after = alphas[index], alphas[index + 1]
        a = math.sqrt(after / now)
        b = math.sqrt(1 - after) - math.sqrt(after * (1 - now) / now)
        when = torch.full((2,), float(t), dtype=torch.float64)
        if (len(timesteps) - index) % 2 == 0:
            x, y = y, x
        x_mid = a * x + b * network(y, when)
        y_mid = a * y + b * network(x_mid, when)
        x = MIX * x_mid + (1 - MIX) * y_mid
        y = MIX * y_mid + (1 - MIX) * x
        if (len(timesteps) - index) % 2 == 0:
            x, y = y, x
    sigmas = torch.cat([schedule.t_to_sigma(torch.tensor(timesteps)), torch.zeros(1, dtype=torch.float64)])
    start = Inverted(to_ve(latents, sigmas[0].item()))
    result = down(denoiser(network, schedule, eps_scalings), start, sigmas, INVERTERS["edict"])
    assert torch.allclose(result, x, atol=1e-9)


@pytest.mark.parametrize("spacing", [karras, ddim, leading])
@pytest.mark.parametrize("scalings", [eps_scalings, v_scalings])
def test_edict_returns_exactly(
    spacing: Callable[[Schedule, int], Sigmas],
    scalings: Callable,
    network: ToyNetwork,
    schedule: Schedule,
    latents: Tensor,
) -> None:
    sigmas = spacing(schedule, 50)
    denoise = denoiser(network, schedule, scalings)
    start = invert(denoise, latents, sigmas, INVERTERS["edict"])
    assert start.x.std() > 5  # it did go up
    assert decibels(down(denoise, start, sigmas, INVERTERS["edict"]), latents) > 150


def test_exactness_outlasts_zero_terminal_snr(network: ToyNetwork, latents: Tensor) -> None:
    schedule = zero_terminal_snr(scaled_linear())
    sigmas, denoise = trailing(schedule, 25), denoiser(network, schedule, v_scalings)
    start = invert(denoise, latents, sigmas, INVERTERS["edict"])
    assert decibels(down(denoise, start, sigmas, INVERTERS["edict"]), latents) > 120


def test_a_network_in_float32_is_inverted_as_well(network: ToyNetwork, schedule: Schedule, latents: Tensor) -> None:
    def narrow(x: Tensor, t: Tensor) -> Tensor:
        return network(x.float(), t.float()).float()

    sigmas, denoise = karras(schedule, 50), denoiser(narrow, schedule, eps_scalings)
    start = invert(denoise, latents.float(), sigmas, INVERTERS["edict"])
    assert start.x.dtype == torch.float64
    assert decibels(down(denoise, start, sigmas, INVERTERS["edict"]), latents.float()) > 100


def two_points(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for data that is -1 or 1, each deviating by 0.3: a nonlinear denoiser in closed form."""
    s2 = 0.3**2
    side = torch.tanh(x / (s2 + sigma**2))  # the odds that the posterior gives to 1 over -1
    return (s2 * x + sigma**2 * side) / (s2 + sigma**2)


def test_the_exact_inversion_is_better_than_the_approximate(schedule: Schedule, latents: Tensor) -> None:
    data, sigmas = latents.sign() + 0.3 * latents.flip(0), karras(schedule, 40)
    plain, exact = (
        decibels(down(two_points, invert(two_points, data, sigmas, one), sigmas, one), data)
        for one in (INVERTERS["ddim"], INVERTERS["edict"])
    )
    assert 15 < plain < exact - 30


def test_with_many_steps_ddim_follows_the_exact_flow(gaussian: Gaussian, schedule: Schedule) -> None:
    """For Gaussian data the flow is known in closed form: x - mean grows as the total deviation."""
    data = torch.tensor([[0.2, 0.7, 1.5]], dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200):
        sigmas = karras(schedule, steps)
        start = invert(gaussian.denoise, data, sigmas, INVERTERS["ddim"])
        expected = gaussian.flow(data, 0, sigmas[0].item())
        errors.append(((start.x - expected).abs().max() / expected.abs().max()).item())
    assert errors[0] < 0.2
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]  # first order: half the error for half the step


def test_edict_goes_on_where_it_stopped(toy: Denoise, schedule: Schedule, latents: Tensor) -> None:
    sigmas, x = karras(schedule, 7), 14.6 * latents
    steps = list(edict(toy, x, sigmas, NoNoise()))
    for index in (0, 1, 2, 4):
        rest = list(edict(toy, steps[index].x, sigmas[index + 1 :], NoNoise(), steps[index].past))
        assert torch.equal(rest[-1].x, steps[-1].x)


def test_rows_are_inverted_each_on_its_own(toy: Denoise, schedule: Schedule, latents: Tensor) -> None:
    sigmas = karras(schedule, 6)
    both = invert(toy, latents, sigmas, INVERTERS["edict"])
    for row in range(2):
        alone = invert(toy, latents[row : row + 1], sigmas, INVERTERS["edict"])
        assert torch.allclose(both.x[row], alone.x[0], atol=1e-9)
        assert torch.allclose(both.past[0].x[row], alone.past[0].x[0], atol=1e-9)


def test_between_two_inversions_lies_the_great_circle(toy: Denoise, schedule: Schedule, latents: Tensor) -> None:
    sigmas = karras(schedule, 6)
    a = invert(toy, latents[:1], sigmas, INVERTERS["edict"])
    b = invert(toy, latents[1:], sigmas, INVERTERS["edict"])
    for end, w in ((a, 0.0), (b, 1.0)):
        at = a.between(b, w)
        assert torch.allclose(at.x, end.x, atol=1e-9)
        assert torch.allclose(at.past[0].x, end.past[0].x, atol=1e-9)
    half = a.between(b, 0.5)
    assert torch.equal(half.x, slerp(a.x, b.x, 0.5))
    norms = [state.x.norm().item() for state in (a, half, b)]
    assert min(norms[0], norms[2]) * 0.95 < norms[1] < max(norms[0], norms[2]) * 1.05


def test_between_a_picture_and_drawn_noise_the_noise_is_its_own_twin(toy: Denoise, schedule: Schedule) -> None:
    sigmas = karras(schedule, 6)
    generator = torch.Generator().manual_seed(2)
    latents, eps = (torch.randn(1, 4, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    picture = invert(toy, latents, sigmas, INVERTERS["edict"])
    drawn = Inverted(to_ve(eps, sigmas[0].item()))
    for at in (picture.between(drawn, 1.0), drawn.between(picture, 0.0)):
        assert torch.allclose(at.x, drawn.x)
        assert torch.allclose(at.past[0].x, drawn.x)
        assert torch.allclose(
            down(toy, at, sigmas, INVERTERS["edict"]), down(toy, drawn, sigmas, INVERTERS["edict"]), atol=1e-9
        )
