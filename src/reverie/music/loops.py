"""How does a loop come to its exact length? Its spectrogram and then its waveform are stretched around the circle."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def stretched(x: Float[Tensor, "... columns"], columns: int) -> Float[Tensor, "... wanted"]:
    """Interpolate linearly to another number of columns, the last going on to the first."""
    old = x.shape[-1]
    if old == columns:
        return x
    places = torch.arange(columns, device=x.device, dtype=torch.float64) * (old / columns)
    left = places.long()
    return torch.lerp(x[..., left], x[..., (left + 1) % old], (places - left).to(x.dtype))


def resampled(samples: Float[Tensor, "c n"], count: int) -> Float[Tensor, "c wanted"]:
    """Bring one period of a periodic sound to another number of samples, through its Fourier series.

    What lies above the new Nyquist frequency is left out; nothing else changes.
    """
    old = samples.shape[-1]
    if old == count:
        return samples
    spectrum = torch.fft.rfft(samples)[..., : (min(old, count) + 1) // 2]
    return torch.fft.irfft(spectrum, count) * (count / old)
