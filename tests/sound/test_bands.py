"""Do short transforms make the bands of long ones, and do steps bring magnitudes nearer to them?"""

from __future__ import annotations

import pytest
import torch

from reverie.sound.spectrogram import FULL_SCALE, SMALL, Line, SpectrogramParams, bands_of, spectrogram

PARAMS = [SpectrogramParams(), SMALL, SpectrogramParams(sample_rate=22_050)]


def chord(rate: float) -> torch.Tensor:
    """Sound five tones for half a second at a rate."""
    time = torch.arange(round(rate / 2), dtype=torch.float64) / rate
    tones = [torch.sin(2 * torch.pi * hertz * time) / 10 for hertz in (220, 555, 1_200, 3_000, 6_100)]
    return torch.stack(tones).sum(0, keepdim=True).float()


def test_riffusion_needs_no_more_than_twenty_kilohertz() -> None:
    bands = bands_of(SpectrogramParams())
    assert (bands.window, bands.hop, bands.padded) == (2_000, 200, 4_000)
    assert bands.filters.shape == (512, 2_001)
    small = bands_of(SMALL)
    assert (small.window, small.hop, small.padded) == (SMALL.window, SMALL.hop, SMALL.n_fft)


@pytest.mark.parametrize("params", PARAMS)
def test_bands_are_those_of_the_whole_transform(params: SpectrogramParams) -> None:
    bands = bands_of(params)
    whole = spectrogram(chord(params.sample_rate), params)
    rate = params.sample_rate * bands.window / params.window
    frames = Line(bands.window, bands.hop, whole.shape[-1], bands.padded)
    samples = (chord(rate) * FULL_SCALE)[:, : frames.samples]
    short = torch.sparse.mm(bands.filters, frames.analyse(samples).abs()[0].T)
    inner = slice(0, -8)  # the rates' samples end, and are mirrored, at other times
    assert (short - whole[0])[:, inner].norm() < 0.02 * whole[0, :, inner].norm()


@pytest.mark.parametrize("params", PARAMS)
def test_steps_come_nearer_and_stay_positive(params: SpectrogramParams) -> None:
    bands = bands_of(params)
    mel = spectrogram(chord(params.sample_rate), params)
    magnitudes = mel.max().expand(1, mel.shape[-1], bands.padded // 2 + 1)
    left = []
    for _ in range(6):
        magnitudes = bands.towards(mel, magnitudes)
        left.append((torch.sparse.mm(bands.filters, magnitudes[0].T) - mel[0]).norm().item())
    assert magnitudes.min() >= 0
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.1 * mel.norm()


def test_silence_has_no_magnitudes() -> None:
    bands = bands_of(SMALL)
    still = bands.towards(torch.zeros(2, SMALL.mels, 4), torch.ones(2, 4, 513))
    assert still.abs().max() == 0
