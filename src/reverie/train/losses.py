"""Parts of a denoiser's loss: the noise, its levels, how the error is measured and weighed.

All is drawn on the CPU, for a whole batch, of which a part takes its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat
from torch import Tensor

from reverie.data.loader import BatchPart
from reverie.diffusion.denoiser import Prediction
from reverie.errors import choose

ALL = float("inf")
TINY = 1e-8  # a signal-to-noise ratio that stands for 0


def debias(prediction: Prediction, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Weigh the squared error of eps by 1 / sqrt(SNR) (Yu et al. 2310.08442, equation 11)."""
    return prediction.min_snr(snr, ALL) / snr.clamp(min=TINY).sqrt()


def p2(prediction: Prediction, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Weigh the squared error of eps by 1 / (1 + SNR) (Choi et al. 2204.00227, equation 8, k = gamma = 1)."""
    return prediction.min_snr(snr, ALL) / (1 + snr)


WEIGHTINGS: dict[str, Callable[[Prediction, Tensor], Tensor]] = {
    "min_snr": lambda prediction, snr: prediction.min_snr(snr),
    "debiased": debias,
    "p2": p2,
    "uniform": lambda prediction, snr: torch.ones_like(snr),
}
"""How much the squared error of the prediction counts at a signal-to-noise ratio.

min_snr(SNR, infinity) is what makes of the error of any prediction that of eps.
"""


def _uniform(levels: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(levels, (count,), generator=generator)


def _logit_normal(levels: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """Draw levels whose logit is standard normal: those in the middle more often (Esser et al. 2403.03206, eq. 19)."""
    return _at(torch.randn(count, generator=generator).sigmoid(), levels)


def _mode(levels: int, count: int, generator: torch.Generator, scale: float = 1.29) -> Int[Tensor, " count"]:
    """Draw levels around the middle with heavy tails (Esser et al. 2403.03206, equation 20)."""
    u = torch.rand(count, generator=generator)
    return _at(1 - u - scale * ((torch.pi / 2 * u).cos() ** 2 - 1 + u), levels)


def _towards_noise(levels: int, count: int, generator: torch.Generator, shift: float = 3.0) -> Int[Tensor, " count"]:
    """Draw levels of which more are noisy: u -> s u / (1 + (s - 1) u) (Esser et al. 2403.03206, equation 23)."""
    u = torch.rand(count, generator=generator)
    return _at(shift * u / (1 + (shift - 1) * u), levels)


def _at(u: Float[Tensor, " count"], levels: int) -> Int[Tensor, " count"]:
    return (levels * u).long().clamp(0, levels - 1)


LEVELS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "mode": _mode,
    "shifted": _towards_noise,
}
"""Which of so many noise levels are drawn, so many at a time."""


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """Return sqrt(d^2 + c^2) - c, elementwise: |d| with a round bottom."""
    return (difference.square() + c**2).sqrt() - c


@dataclass(frozen=True)
class DenoisingSettings:
    """Choose the loss of a denoiser."""

    weighting: str = "min_snr"  # of the noise levels, a key of WEIGHTINGS
    levels: str = "uniform"  # how often which is drawn, a key of LEVELS
    huber: NonNegativeFloat = 0.0  # c of 2 c (sqrt(d^2 + c^2) - c) in place of the square d^2, which 0 keeps
    offset: NonNegativeFloat = 0.0  # deviation of noise that is the same all over a channel, beside the other
    pyramid: NonNegativeFloat = 0.0  # by how much each halving of the resolution adds less noise than the one before
    perturbation: NonNegativeFloat = 0.0  # deviation of noise that the network sees and is not to predict

    def __post_init__(self) -> None:
        """Raise ReverieError for unknown names."""
        choose("weighting", self.weighting, WEIGHTINGS)
        choose("levels", self.levels, LEVELS)

    def measure(self, difference: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the error of each element: the square, or Huber's, which is the square where it is small beside c."""
        return 2 * self.huber * pseudo_huber(difference, self.huber) if self.huber else difference.square()


def draw_noise(
    settings: DenoisingSettings, x0: Float[Tensor, "b c h w"], generator: torch.Generator, part: BatchPart
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Draw the noise that is to be predicted, and the noise that the network sees.

    Offset noise: Guttenberg, "Diffusion with offset noise", 2023. Pyramid noise: "Multi-resolution noise for diffusion
    model training", 2023, halving each time, brought to unit deviation. Perturbation: Ning et al. 2301.11706, alg. 1.
    """
    eps = part.randn_like(x0, generator)
    if settings.offset:
        eps = eps + settings.offset * part.randn_like(x0[:, :, :1, :1], generator)
    if settings.pyramid:
        eps = _pyramid(eps, settings.pyramid, generator, part)
    if not settings.perturbation:
        return eps, eps
    return eps, eps + settings.perturbation * part.randn_like(x0, generator)


def _pyramid(eps: Tensor, discount: float, generator: torch.Generator, part: BatchPart) -> Tensor:
    height, width = eps.shape[2:]
    for level in range(1, min(height, width).bit_length()):
        coarse = part.randn_like(eps[:, :, : height >> level, : width >> level], generator)
        eps = eps + discount**level * F.interpolate(coarse, (height, width), mode="bilinear")
    return eps / eps.std((1, 2, 3), keepdim=True)
