"""A network that answers its training target exactly must give x0 back at every noise level, whatever it predicts."""

from __future__ import annotations

import pytest
import torch

from reverie.diffusion.denoiser import PREDICTIONS, denoiser, edm_scalings
from reverie.diffusion.schedule import Schedule, to_vp, zero_terminal_snr


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("t", [0, 321, 999])
def test_a_perfect_network_recovers_x0(schedule: Schedule, name: str, t: int) -> None:
    prediction, times = PREDICTIONS[name], torch.full((2,), t)
    x0, eps = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64).unbind()
    sigma = schedule.sigmas[t]

    def network(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        noised, time = prediction.noised(schedule, x0, eps, times)
        torch.testing.assert_close(x, noised)
        torch.testing.assert_close(level, time.double(), rtol=0, atol=1e-9)
        return prediction.target(schedule, x0, eps, times)

    denoise = denoiser(network, schedule, prediction.scalings)
    torch.testing.assert_close(denoise(x0 + sigma * eps, sigma), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoise(x0 + sigma * eps, sigma.item()), x0, rtol=1e-9, atol=1e-9)


def test_v_recovers_x0_where_there_is_no_signal(schedule: Schedule) -> None:
    flawless, v = zero_terminal_snr(schedule), PREDICTIONS["v"]
    x0, eps = torch.randn(2, 1, 4, 3, 3).unbind()
    target = v.target(flawless, x0, eps, torch.tensor([999]))
    torch.testing.assert_close(target, -x0)
    denoise = denoiser(lambda x, t: target, flawless, v.scalings)
    torch.testing.assert_close(denoise(4096 * eps, flawless.sigma_max), x0, rtol=1e-3, atol=1e-3)


def test_edm_scalings_keep_input_and_target_at_unit_variance(schedule: Schedule) -> None:
    for sigma in torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=torch.float64):
        c = edm_scalings(schedule, sigma)
        assert (c.c_in**2 * (sigma**2 + 0.25)).item() == pytest.approx(1)  # variance of c_in (x0 + sigma eps)
        target = (0.25 * (1 - c.c_skip) ** 2 + (sigma * c.c_skip) ** 2) / c.c_out**2  # of (x0 - c_skip x) / c_out
        assert target.item() == pytest.approx(1)
        assert c.c_noise == sigma.log() / 4


def test_the_output_has_the_dtype_of_the_latent(schedule: Schedule) -> None:
    denoise = denoiser(lambda x, t: x.half(), schedule, PREDICTIONS["eps"].scalings)
    assert denoise(torch.randn(1, 4, 2, 2), 1.0).dtype == torch.float32


def test_the_network_sees_pure_noise_with_unit_variance(schedule: Schedule) -> None:
    seen = []
    denoise = denoiser(lambda x, t: seen.append(x) or x, schedule, PREDICTIONS["eps"].scalings)
    x = 14.6 * torch.randn(1, 4, 2, 2)
    denoise(x, 14.6)
    torch.testing.assert_close(seen[0], to_vp(x, 14.6))


def test_min_snr_weights_are_one_and_the_same_in_terms_of_x0(schedule: Schedule) -> None:
    snr = schedule.snr(torch.arange(1000))
    weights = {name: prediction.min_snr(snr) for name, prediction in PREDICTIONS.items()}
    torch.testing.assert_close(weights["eps"], snr.clamp(max=5) / snr)
    torch.testing.assert_close(weights["v"], snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(weights["eps"] * snr, weights["x0"])  # |eps error|^2 = SNR |x0 error|^2
    torch.testing.assert_close(weights["v"] * (snr + 1), weights["x0"])  # |v error|^2 = (SNR + 1) |x0 error|^2
    assert weights["eps"].max() <= 1
    assert PREDICTIONS["eps"].min_snr(torch.zeros(1)).item() == 1
