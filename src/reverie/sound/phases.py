"""Which sound has this mel spectrogram? Phases are suggested by its magnitudes, then both are made to agree."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.sound.bands import bands_of
from reverie.sound.frames import Line
from reverie.sound.params import SpectrogramParams
from reverie.sound.spectrogram import FULL_SCALE
from reverie.sound.start import suggested

FITTING = 6  # steps towards the mel spectrogram before phases are suggested
ITERATIONS = 16
FAINT = 1e-9  # an amplitude that has no phase
MOMENTUM = 0.99  # Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm", 2013


@torch.no_grad()
def waveform(
    mel: Float[Tensor, "c mels frames"],
    params: SpectrogramParams,
    time: type[Line] = Line,
    iterations: int = ITERATIONS,
) -> Float[Tensor, "c n"]:
    """Return frames * hop samples whose mel amplitudes, at the scale of 16-bit samples, are near to `mel`.

    With a `time` that is a Circle the end goes on at the beginning. Each iteration is one of fast Griffin-Lim, but for
    the magnitudes that it keeps: not the same ones every time, but those just found, a step nearer to the bands, as
    only the bands are known (Masuyama et al., "Signal reconstruction from mel-spectrogram based on bi-level
    consistency", 2023). Channels begin with the same phases, so that what is in the middle stays there.
    """
    device = mel.device if mel.is_cuda else torch.device("cpu")  # sparse products are for these
    bands, mel = bands_of(params).to(device), mel.float().to(device)
    frames = time(bands.window, bands.hop, mel.shape[-1], bands.padded)
    magnitudes = mel.max().expand(len(mel), mel.shape[-1], bands.padded // 2 + 1)
    for _ in range(FITTING):
        magnitudes = bands.towards(mel, magnitudes)
    spectrum = torch.polar(magnitudes, suggested(magnitudes.mean(0, keepdim=True), bands).expand_as(magnitudes))
    before = torch.zeros_like(spectrum)
    for _ in range(iterations):
        now = frames.analyse(frames.synthesise(spectrum))
        ahead = now.lerp(before, -MOMENTUM)
        spectrum = ahead * (bands.towards(mel, now.abs()) / ahead.abs().clamp(min=FAINT))
        before = now
    whole = time(params.window, params.hop, mel.shape[-1], bands.padded // bands.window * params.window)
    return whole.synthesise(spectrum * (params.window / bands.window)) / FULL_SCALE
