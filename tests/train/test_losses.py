"""Are noise, levels, weights and errors what the papers and diffusers' examples compute?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import Tensor

from reverie.data.loader import WHOLE, BatchPart
from reverie.diffusion.denoiser import PREDICTIONS
from reverie.diffusion.schedule import SCHEDULES
from reverie.errors import ReverieError
from reverie.train.losses import LEVELS, WEIGHTINGS, DenoisingSettings, draw_noise

SNR = torch.tensor([1e-3, 0.5, 4.0, 20.0, 900.0])
OF_EPS: dict[str, Callable[[Tensor], Tensor]] = {"debiased": lambda snr: snr**-0.5, "p2": lambda snr: 1 / (1 + snr)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("name", OF_EPS)
def test_weights_of_the_error_of_eps_hold_for_every_prediction(name: str) -> None:
    """An error d of the prediction is one of eps by the algebra of x = a x0 + s eps, a^2 / s^2 = SNR, x known."""
    a, s = (SNR / (1 + SNR)).sqrt(), (1 / (1 + SNR)).sqrt()
    u = s / (a + s)  # rectified flow's x is (1 - u) x0 + u eps
    errors = {"eps": torch.ones_like(SNR), "v": a, "x0": a / s, "flow": 1 - u}
    assert errors.keys() == PREDICTIONS.keys()
    for prediction, of_eps in errors.items():
        expected = of_eps**2 * OF_EPS[name](SNR)
        torch.testing.assert_close(WEIGHTINGS[name](PREDICTIONS[prediction], SNR), expected)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_is_that_of_diffusers_examples(prediction: str) -> None:
    """examples/text_to_image/train_text_to_image.py, --snr_gamma 5."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([0, 100, 500, 999])
    snr = compute_snr(scheduler, t)
    expected = torch.stack([snr, 5.0 * torch.ones_like(t)], dim=1).min(dim=1)[0]
    expected = expected / (snr if prediction == "eps" else snr + 1)
    ours = WEIGHTINGS["min_snr"](PREDICTIONS[prediction], SCHEDULES["scaled_linear"]().snr(t))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_levels_are_drawn_as_diffusers_draws_them() -> None:
    for name in ("logit_normal", "mode"):
        u = compute_density_for_timestep_sampling(name, 500, 0.0, 1.0, 1.29, generator=generator())
        assert torch.equal(LEVELS[name](1000, 500, generator()), (u * 1000).long().clamp(0, 999))


def test_levels_are_shifted_as_diffusers_shifts_the_times_of_flow() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.rand(500, generator=generator()).numpy())
    assert torch.equal(LEVELS["shifted"](1000, 500, generator()), scheduler.timesteps.long().clamp(0, 999))


def test_offset_and_perturbation_are_those_of_diffusers_examples() -> None:
    """The same example, --noise_offset and --input_perturbation: the target is without the perturbation."""
    settings, x0 = DenoisingSettings(offset=0.1, perturbation=0.2), torch.zeros(3, 4, 8, 8)
    eps, seen = draw_noise(settings, x0, generator(), WHOLE)
    same = generator()
    noise = torch.randn(x0.shape, generator=same)
    noise = noise + 0.1 * torch.randn((x0.shape[0], x0.shape[1], 1, 1), generator=same)
    assert torch.equal(eps, noise)
    assert torch.equal(seen, noise + 0.2 * torch.randn(x0.shape, generator=same))


def test_pyramid_noise_has_unit_deviation_and_low_frequencies() -> None:
    settings, x0 = DenoisingSettings(pyramid=0.8), torch.zeros(64, 4, 16, 16)
    eps, _ = draw_noise(settings, x0, generator(), WHOLE)
    torch.testing.assert_close(eps.std((1, 2, 3)), torch.ones(64))
    white = torch.randn(x0.shape, generator=generator())
    assert F.avg_pool2d(eps, 4).var() > 2 * F.avg_pool2d(white, 4).var()
    assert torch.equal(draw_noise(settings, x0[16:32], generator(), BatchPart(1, 4))[0], eps[16:32])


def test_hubers_error_is_that_of_diffusers_examples() -> None:
    """conditional_loss of diffusers' research projects (scheduled Huber): 2 c (sqrt(d^2 + c^2) - c)."""
    d, c = torch.linspace(-3, 3, 25), 0.1
    torch.testing.assert_close(DenoisingSettings(huber=c).measure(d), 2 * c * (torch.sqrt(d**2 + c**2) - c))
    assert torch.equal(DenoisingSettings().measure(d), d.square())


def test_unknown_names_of_a_loss() -> None:
    with pytest.raises(ReverieError, match="unknown weighting 'none'; choose from min_snr, debiased, p2, uniform"):
        DenoisingSettings(weighting="none")
