"""Parameterisations: scalings that turn a network's output (eps, v, x0, EDM, flow) into x0, and training targets.

D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)   (Karras et al. 2206.00364, eq. 7), with x = x0 + sigma eps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reverie.diffusion.schedule import (
    Schedule,
    linear,
    log_uniform,
    rectified_flow,
    scaled_linear,
    squared_cosine,
    zero_terminal_snr,
)
from reverie.errors import choose

Level = float | Tensor
"""One noise level for the whole batch, a float or a scalar tensor."""

Denoise = Callable[[Tensor, Level], Tensor]
"""(x "b ...", sigma) -> x0 "b ...": all that a sampler knows of a model. Guidance and masks map Denoise to Denoise."""

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_vp "b ...", t "b") -> F "b ...": a trained network with its conditioning already bound."""


class Scalings(NamedTuple):
    """Name the four preconditioning coefficients at one noise level, float64 scalars."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def denoiser(network: Network, schedule: Schedule, scalings: Callable[[Schedule, Tensor], Scalings]) -> Denoise:
    """Turn a network into denoise(x, sigma) -> x0, in the dtype of x."""

    def denoise(x: Float[Tensor, "b ..."], sigma: Level) -> Float[Tensor, "b ..."]:
        c = scalings(schedule, torch.as_tensor(sigma, dtype=torch.float64, device="cpu"))
        t = x.new_full((len(x),), c.c_noise.item())  # a copy would wait for the device
        return c.c_skip * x + c.c_out * network(c.c_in * x, t).to(x.dtype)

    return denoise


def eps_scalings(schedule: Schedule, sigma: Tensor) -> Scalings:
    """Read F as the noise: x0 = x - sigma F."""
    return Scalings(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), schedule.sigma_to_t(sigma))


def v_scalings(schedule: Schedule, sigma: Tensor) -> Scalings:
    """Read F as v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans and Ho 2202.00512, appendix D)."""
    root = (sigma**2 + 1).sqrt()
    return Scalings(1 / root**2, -sigma / root, 1 / root, schedule.sigma_to_t(sigma))


def x0_scalings(schedule: Schedule, sigma: Tensor) -> Scalings:
    """Read F as x0 itself."""
    return Scalings(
        torch.zeros_like(sigma), torch.ones_like(sigma), 1 / (sigma**2 + 1).sqrt(), schedule.sigma_to_t(sigma)
    )


def edm_scalings(_: Schedule, sigma: Tensor, sigma_data: float = 0.5) -> Scalings:
    """Read F as EDM does, with unit variance at every noise level (Karras et al. 2206.00364, table 1)."""
    root = (sigma**2 + sigma_data**2).sqrt()
    return Scalings((sigma_data / root) ** 2, sigma * sigma_data / root, 1 / root, sigma.log() / 4)


def edm_v_scalings(schedule: Schedule, sigma: Tensor, sigma_data: float = 1.0) -> Scalings:
    """Read F as v in EDM's frame, as CosXL does (generative-models: VScalingWithEDMcNoise; diffusers: EDMEuler)."""
    c = edm_scalings(schedule, sigma, sigma_data)
    return c._replace(c_out=-c.c_out)


def flow_scalings(schedule: Schedule, sigma: Tensor) -> Scalings:
    """Read F as the velocity eps - x0 at x_t = (1 - t) x0 + t eps, t = sigma / (1 + sigma) (Liu et al. 2209.03003)."""
    return Scalings(1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma), len(schedule) * sigma / (1 + sigma))


def eps_target(schedule: Schedule, x0: Tensor, eps: Tensor, t: Int[Tensor, " b"]) -> Tensor:
    """Give what an eps network learns to answer at add_noise(x0, eps, t)."""
    return eps


def v_target(schedule: Schedule, x0: Tensor, eps: Tensor, t: Int[Tensor, " b"]) -> Tensor:
    """Give what a v network learns to answer at add_noise(x0, eps, t)."""
    signal, noise = schedule.signal_and_noise(t, x0)
    return signal * eps - noise * x0


def x0_target(schedule: Schedule, x0: Tensor, eps: Tensor, t: Int[Tensor, " b"]) -> Tensor:
    """Give what an x0 network learns to answer at add_noise(x0, eps, t)."""
    return x0


def eps_min_snr(snr: Float[Tensor, " b"], gamma: float = 5.0) -> Float[Tensor, " b"]:
    """Weigh the squared error of eps by min(SNR, gamma) / SNR (Hang et al. 2303.09556, 3.4); 1 where SNR is 0."""
    return (gamma / snr).clamp(max=1)


def v_min_snr(snr: Float[Tensor, " b"], gamma: float = 5.0) -> Float[Tensor, " b"]:
    """Weigh the squared error of v by min(SNR, gamma) / (SNR + 1) (Hang et al. 2303.09556, section 3.4)."""
    return snr.clamp(max=gamma) / (snr + 1)


def x0_min_snr(snr: Float[Tensor, " b"], gamma: float = 5.0) -> Float[Tensor, " b"]:
    """Weigh the squared error of x0 by min(SNR, gamma) (Hang et al. 2303.09556, section 3.4)."""
    return snr.clamp(max=gamma)


def flow_target(schedule: Schedule, x0: Tensor, eps: Tensor, t: Int[Tensor, " b"]) -> Tensor:
    """Give what a network of rectified flow learns to answer: the velocity (Liu et al. 2209.03003, eq. 1)."""
    return eps - x0


def flow_min_snr(snr: Float[Tensor, " b"], gamma: float = 5.0) -> Float[Tensor, " b"]:
    """Weigh the squared error of the velocity so that of x0, which is t times as far off, counts min(SNR, gamma)."""
    return snr.clamp(max=gamma) / (1 + snr.sqrt()) ** 2


def variance_preserving(
    schedule: Schedule, x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], t: Int[Tensor, " b"]
) -> tuple[Tensor, Tensor]:
    """Give what a network sees at t, and the time that it is given: t itself."""
    return schedule.add_noise(x0, eps, t), t


def straight(
    schedule: Schedule, x0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], t: Int[Tensor, " b"]
) -> tuple[Tensor, Tensor]:
    """Give what a network of rectified flow sees at level t, (1 - u) x0 + u eps, and the time len(schedule) u."""
    sigma = schedule.sigmas.to(t.device)[t]
    u = (sigma / (1 + sigma)).to(x0.dtype)
    along = u.view(-1, *[1] * (x0.ndim - 1))
    return torch.lerp(x0, eps, along), len(schedule) * u


@dataclass(frozen=True)
class Prediction:
    """Say what a network predicts: how to read it, what to teach it on which input, how to weigh its squared error."""

    scalings: Callable[[Schedule, Tensor], Scalings]
    target: Callable[[Schedule, Tensor, Tensor, Tensor], Tensor]
    min_snr: Callable[..., Tensor]  # (SNR, gamma = 5) -> weights
    noised: Callable[[Schedule, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = variance_preserving


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(eps_scalings, eps_target, eps_min_snr),
    "v": Prediction(v_scalings, v_target, v_min_snr),
    "x0": Prediction(x0_scalings, x0_target, x0_min_snr),
    "flow": Prediction(flow_scalings, flow_target, flow_min_snr, straight),
}
"""What networks can be trained to predict."""

SCALINGS: dict[str, Callable[..., Scalings]] = {
    **{name: prediction.scalings for name, prediction in PREDICTIONS.items()},
    "edm": edm_scalings,
    "edm_v": edm_v_scalings,
}
"""What networks can be drawn with; those of EDM also take `sigma_data`, the deviation of the data."""
EDM = ("edm", "edm_v")  # whose noise levels are continuous


@dataclass(frozen=True)
class ScheduleConfig:
    """Describe the forward process a network was trained on, and what it predicts: a name in `SCALINGS`.

    For "edm" and "edm_v", whose noise levels are continuous, the sigmas count and the betas do not; for "flow" the
    `shift` of its times alone. `timestep_spacing` and `steps_offset` are what other programs should sample with by
    default; ours choose by request.
    """

    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    prediction: str = "eps"
    zero_terminal_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    shift: float = 1.0

    @property
    def is_edm(self) -> bool:
        """Return whether the noise levels are continuous, and the network is given log(sigma) / 4."""
        return self.prediction in EDM

    def scalings(self) -> Callable[[Schedule, Tensor], Scalings]:
        """Return how to read what the network predicts. Raises ReverieError for an unknown prediction."""
        found = choose("prediction", self.prediction, SCALINGS)
        return partial(found, sigma_data=self.sigma_data) if self.is_edm else found

    def schedule(self) -> Schedule:
        """Compute the tables."""
        if self.is_edm:
            return log_uniform(self.sigma_min, self.sigma_max, self.steps)
        if self.prediction == "flow":
            return rectified_flow(self.steps, self.shift)
        if self.beta_schedule == "squared_cosine":
            schedule = squared_cosine(self.steps)
        else:
            make = {"scaled_linear": scaled_linear, "linear": linear}[self.beta_schedule]
            schedule = make(self.beta_start, self.beta_end, self.steps)
        return zero_terminal_snr(schedule) if self.zero_terminal_snr else schedule


# What a model may be said to predict, where its file does not say or says it wrongly.
PARAMETERISATIONS = {
    **{name: ScheduleConfig(prediction=name) for name in SCALINGS},
    "v_zsnr": ScheduleConfig(prediction="v", zero_terminal_snr=True),
    "edm_v": ScheduleConfig(prediction="edm_v", sigma_max=120.0, sigma_data=1.0),  # CosXL's
}


def parameterise(schedule: ScheduleConfig, name: str) -> ScheduleConfig:
    """Return a schedule with another of PARAMETERISATIONS; its betas stay. Raises ReverieError for other names."""
    chosen = choose("prediction", name, PARAMETERISATIONS)
    if chosen.prediction == schedule.prediction and not chosen.zero_terminal_snr:
        return schedule
    changed = ("prediction", "zero_terminal_snr", "sigma_min", "sigma_max", "sigma_data")
    return replace(schedule, **{key: getattr(chosen, key) for key in changed})
