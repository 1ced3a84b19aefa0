"""Rectified flow against diffusers: the shifted levels, and whole runs of Euler and of the multistep samplers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from reverie.diffusion.denoiser import PREDICTIONS, denoiser
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import rectified_flow
from reverie.diffusion.spacings import SPACINGS

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers, numpy 2

FLOW = PREDICTIONS["flow"]
NOISE = torch.randn((2, 4, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(2 * x - x.roll(1, dims=-1))  # of t it must not depend: diffusers truncates it


def ours(sampler: str, levels: Tensor, no_noise) -> Tensor:
    """Sample from noise alone at the levels t of x_t = (1 - t) x0 + t eps."""
    sigmas = levels / (1 - levels)
    denoise = denoiser(velocity, rectified_flow(), FLOW.scalings)
    *_, last = SAMPLERS[sampler](denoise, NOISE * (1 + sigmas[0]), sigmas, no_noise)
    return last.x


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_even_times_are_shifted(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.001, 20, dtype=torch.float64).tolist())
    sigmas = SPACINGS["normal"](rectified_flow(shift=shift), 20)
    t = sigmas / (1 + sigmas)
    assert (t - scheduler.sigmas).abs().max() < 3e-4  # t = 1 is a sigma of 4096 here


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler(shift: float, no_noise) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[0.99, 0.7, 0.4, 0.1])
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x).prev_sample
    assert (ours("euler", scheduler.sigmas.double(), no_noise) - x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("dpmpp_2m", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)]
)
@pytest.mark.parametrize("steps", [4, 12])
def test_multistep_samplers(sampler: str, scheduler: Callable, steps: int, no_noise) -> None:
    reference = scheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    reference.set_timesteps(steps)
    x = NOISE
    for t in reference.timesteps:
        x = reference.step(velocity(x, t), t, x).prev_sample
    actual = ours(sampler, reference.sigmas.double(), no_noise)
    assert (actual - x).abs().max() < 1e-4 * x.abs().max()


def test_what_a_network_learns_is_what_sampling_reads() -> None:
    """From the exact velocity the denoiser gives x0 back, at the input and time that training shows."""
    schedule, eps = rectified_flow(shift=3.0), NOISE
    x0, t = NOISE.flip(2) / 2, torch.tensor([40, 800])
    x, time = FLOW.noised(schedule, x0, eps, t)
    target = FLOW.target(schedule, x0, eps, t)
    for row in range(2):
        sigma = schedule.sigmas[t[row]]
        c = FLOW.scalings(schedule, sigma)
        assert c.c_noise.item() == pytest.approx(time[row].item())
        torch.testing.assert_close(c.c_in * (x0 + sigma * eps)[row], x[row])
        torch.testing.assert_close(c.c_skip * (x0 + sigma * eps)[row] + c.c_out * target[row], x0[row])


def test_min_snr_counts_errors_of_x0_alike() -> None:
    snr = torch.tensor([0.01, 1.0, 5.0, 400.0])
    t = 1 / (1 + snr.sqrt())
    torch.testing.assert_close(FLOW.min_snr(snr), PREDICTIONS["x0"].min_snr(snr) * t**2)
