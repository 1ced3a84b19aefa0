"""How does a sound of one channel come from two sides? Its phases are turned apart; the mean of both stays."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

WIDTH = 0.6  # of the side beside the middle: wide, and still in front
SPREAD = 0.01  # seconds before and after over which the side is spread: too short to be heard as an echo
SEED = 0  # of the side's phases: the same for every sound


def widened(samples: Float[Tensor, "1 n"], rate: int) -> Float[Tensor, "2 n"]:
    """Return left = middle + side and right = middle - side, whose mean is the sound itself.

    The side is the sound through a filter that turns every frequency by a quarter, some one way and some the other.
    So left and right are equally loud at every frequency, and differ by their phases alone (Schroeder 1958, "An
    Artificial Stereophonic Effect Obtained from a Single Audio Signal"). It is filtered around the circle: a loop stays
    one.
    """
    side = WIDTH * _filtered(samples, _odd_noise(rate))
    return torch.cat([samples + side, samples - side])


def _odd_noise(rate: int) -> Float[Tensor, " taps"]:
    """Return a noise that is its own negative backwards: its spectrum is imaginary. Its energy is 1."""
    taps = max(2, math.ceil(SPREAD * rate))
    noise = torch.randn(taps, generator=torch.Generator("cpu").manual_seed(SEED))
    half = noise * torch.exp(-3 * torch.arange(taps) / taps)
    odd = torch.cat([-half.flip(0), torch.zeros(1), half])
    return odd / odd.norm()


def _filtered(samples: Float[Tensor, "1 n"], taps: Float[Tensor, " taps"]) -> Float[Tensor, "1 n"]:
    """Convolve around the circle with taps whose middle stands at the present."""
    n = samples.shape[-1]
    turns = math.ceil(len(taps) / n)
    around = torch.nn.functional.pad(taps, (0, turns * n - len(taps))).view(turns, n).sum(0).roll(-(len(taps) // 2))
    return torch.fft.irfft(torch.fft.rfft(samples) * torch.fft.rfft(around.to(samples.device)), n)
