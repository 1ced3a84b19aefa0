"""Noise schedules: tables of alpha_bar and sigma by timestep, and interpolation between t and sigma.

Two frames describe the same noisy latent. The network sees the variance-preserving one,
x_vp = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps; samplers work in the variance-exploding one, x = x0 + sigma eps.
They differ by a factor alone: x_vp = x / sqrt(1 + sigma^2), with sigma^2 = (1 - alpha_bar) / alpha_bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

NEARLY_ZERO = 2.0**-24  # stands for an alpha_bar of 0 (zero terminal SNR), so that sigma is 4096 and not infinite


@dataclass(frozen=True, eq=False)
class Schedule:
    """Hold alpha_bar (float64, falling from about 1 to about 0) of the discrete process a network was trained on.

    The tables stay on the CPU in float64; each method answers on the device and in the dtype of its argument.
    """

    alphas_cumprod: Float[Tensor, " steps"]

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @cached_property
    def sigmas(self) -> Float[Tensor, " steps"]:
        """Give sigma at every trained timestep, rising; sigma^2 = (1 - alpha_bar) / alpha_bar = 1 / SNR."""
        alpha_bar = self.alphas_cumprod.where(self.alphas_cumprod > 0, NEARLY_ZERO)
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    @property
    def sigma_min(self) -> float:
        """Give the noise level of the first timestep, 0.0291672 for Stable Diffusion."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """Give the noise level of the last timestep, 14.614641 for Stable Diffusion."""
        return self.sigmas[-1].item()

    def t_to_sigma(self, t: Real[Tensor, "*shape"] | float) -> Float[Tensor, "*shape"]:
        """Give sigma (float64, CPU) at a possibly fractional t, linear in log sigma (k-diffusion: external.py)."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu").clamp(0, len(self) - 1)
        low, high = t.floor().long(), t.ceil().long()
        log_sigmas = self.sigmas.log()
        return torch.lerp(log_sigmas[low], log_sigmas[high], t - low).exp()

    def sigma_to_t(self, sigma: Float[Tensor, "*shape"] | float) -> Float[Tensor, "*shape"]:
        """Give the fractional t (float64, CPU) at sigma, linear in log sigma and held at both ends of the table."""
        log_sigma = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").log()
        log_sigmas = self.sigmas.log()
        high = torch.searchsorted(log_sigmas, log_sigma).clamp(1, len(self) - 1)
        low = high - 1
        fraction = (log_sigma - log_sigmas[low]) / (log_sigmas[high] - log_sigmas[low])
        return low + fraction.clamp(0, 1)

    def signal_and_noise(self, t: Int[Tensor, " b"], x: Float[Tensor, "b ..."]) -> tuple[Tensor, Tensor]:
        """Give sqrt(alpha_bar) and sqrt(1 - alpha_bar) at t, shaped and typed to multiply x."""
        shape = (-1, *[1] * (x.ndim - 1))
        signal, noise = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        return signal.to(t.device, x.dtype)[t].view(shape), noise.to(t.device, x.dtype)[t].view(shape)

    def add_noise(
        self, x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b ..."]:
        """Noise x0 in one jump, x_vp = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (DDPM 2006.11239, eq. 4)."""
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def snr(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Give the signal-to-noise ratio alpha_bar / (1 - alpha_bar) at t, float32."""
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        return snr.to(t.device, torch.float32)[t]


def to_vp(x: Float[Tensor, "*shape"], sigma: float | Tensor) -> Float[Tensor, "*shape"]:
    """Bring x = x0 + sigma eps to the variance-preserving frame of the network; the identity at sigma = 0."""
    return x / (1 + sigma**2) ** 0.5


def to_ve(x: Float[Tensor, "*shape"], sigma: float | Tensor) -> Float[Tensor, "*shape"]:
    """Bring a variance-preserving x to the samplers' frame; of pure noise at sigmas[0] it makes the initial latent."""
    return x * (1 + sigma**2) ** 0.5


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Schedule:
    """Make the schedule of Stable Diffusion 1, 2 and XL: sqrt(beta) is linear (CompVis: diffusionmodules/util.py)."""
    return _from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)


def linear(start: float = 0.0001, end: float = 0.02, steps: int = 1000) -> Schedule:
    """Make the schedule of DDPM: beta is linear (2006.11239, section 4)."""
    return _from_betas(torch.linspace(start, end, steps, dtype=torch.float64))


def squared_cosine(steps: int = 1000, offset: float = 0.008, largest_beta: float = 0.999) -> Schedule:
    """Make the squared cosine schedule: alpha_bar(t) ~ cos^2(pi/2 (t + s)/(1 + s)) (2102.09672, eq. 17)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = ((t + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    return _from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest_beta))


def log_uniform(sigma_min: float = 0.002, sigma_max: float = 80.0, steps: int = 1000) -> Schedule:
    """Tabulate EDM's continuous range of noise levels with log sigma linear (ComfyUI: ModelSamplingContinuousEDM)."""
    sigmas = torch.linspace(math.log(sigma_min), math.log(sigma_max), steps, dtype=torch.float64).exp()
    return Schedule(1 / (1 + sigmas**2))


def rectified_flow(steps: int = 1000, shift: float = 1.0) -> Schedule:
    """Make the schedule of x_t = (1 - t) x0 + t eps: sigma = t / (1 - t) (Liu et al. 2209.03003).

    t is shift u / (1 + (shift - 1) u) for even u = 1/steps ... 1 (Esser et al. 2403.03206, section 5.3.2).
    """
    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    t = shift * u / (1 + (shift - 1) * u)
    return Schedule((1 - t) ** 2 / ((1 - t) ** 2 + t**2))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and stretch sqrt(alpha_bar) so that the last timestep holds noise alone (Lin et al. 2305.08891, alg. 1)."""
    root = schedule.alphas_cumprod.sqrt()
    return Schedule(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)


def _from_betas(betas: Float[Tensor, " steps"]) -> Schedule:
    return Schedule((1 - betas).cumprod(0))


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "scaled_linear": scaled_linear,
    "linear": linear,
    "squared_cosine": squared_cosine,
}
