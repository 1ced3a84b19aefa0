"""How loud is each band of a sound at each time? The mel spectrogram, with Riffusion's formula."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import ReverieError
from reverie.sound.params import SpectrogramParams

FULL_SCALE = 32_767  # Riffusion reads samples as 16-bit numbers


def spectrogram(samples: Float[Tensor, "c n"], params: SpectrogramParams) -> Float[Tensor, "c mels frames"]:
    """Return the mel amplitudes of a waveform in [-1, 1], at the scale of 16-bit samples, n // hop frames of them.

    Frame t is centred on sample t * hop; beyond its ends the sound is reflected (torchaudio's Spectrogram and MelScale,
    as riffusion/spectrogram_converter.py sets them, but for the frame after the end). Raises ReverieError for a sound
    shorter than half a transform, which cannot be reflected.
    """
    if samples.shape[1] <= params.n_fft // 2:
        least = (params.n_fft // 2 + 1) / params.sample_rate
        raise ReverieError(f"a sound of {samples.shape[1]} samples is too short; {least:.2f} s or more are taken")
    window = torch.hann_window(params.window, device=samples.device)
    bins = torch.stft(
        samples * FULL_SCALE, params.n_fft, params.hop, params.window, window, pad_mode="reflect", return_complex=True
    ).abs()
    mel = torch.einsum("cbt,bm->cmt", bins, mel_filters(params).to(samples.device))
    return mel[..., : max(1, samples.shape[1] // params.hop)]


def mel_filters(params: SpectrogramParams) -> Float[Tensor, "bins mels"]:
    """Return the weights of the bins 0 to n_fft // 2 in each band: triangles of height 1 on the HTK scale."""
    frequencies = torch.linspace(0, params.sample_rate // 2, params.n_fft // 2 + 1, dtype=torch.float64)
    corners = to_hertz(torch.linspace(to_mel(params.low), to_mel(params.high), params.mels + 2, dtype=torch.float64))
    widths = corners.diff()
    distances = corners - frequencies[:, None]
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0).float()


def to_mel(hertz: float) -> float:
    """Return the HTK mel of a frequency (Young et al., The HTK Book, 5.6)."""
    return 2595 * math.log10(1 + hertz / 700)


def to_hertz(mels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the frequencies of HTK mels."""
    return 700 * (10 ** (mels / 2595) - 1)
