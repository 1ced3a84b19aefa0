"""Are mel amplitudes those of the formula, and is what cannot be heard refused?"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from reverie.errors import ReverieError
from reverie.sound.spectrogram import FULL_SCALE, SMALL, SpectrogramParams, mel_filters, spectrogram


@pytest.mark.parametrize("params", [SpectrogramParams(), SMALL])
def test_a_tone_is_loudest_in_its_band(params: SpectrogramParams) -> None:
    hertz = 1_000
    time = torch.arange(params.sample_rate) / params.sample_rate
    mel = spectrogram(torch.sin(2 * math.pi * hertz * time)[None] / 2, params)
    assert mel.shape == (1, params.mels, params.sample_rate // params.hop)
    top = 2595 * math.log10(1 + params.high / 700)
    band = 2595 * math.log10(1 + hertz / 700) / top * (params.mels + 1) - 1
    assert abs(mel[0, :, 20].argmax().item() - band) <= 1
    # A Hann window sums to half its length, and a real tone's peak is half its amplitude; filters here are 1 high.
    peak = 0.5 * FULL_SCALE * params.window / 4
    assert mel[0, :, 20].max() > peak


def test_filters_share_each_bin() -> None:
    """Neighbouring triangles of height 1 add to 1 between the first centre and the last."""
    params = SpectrogramParams()
    filters = mel_filters(params)
    spacing = params.sample_rate / params.n_fft
    inner = filters[round(20 / spacing) : round((params.high - 200) / spacing)]
    assert torch.allclose(inner.sum(1), torch.ones(len(inner)), atol=1e-4)
    assert filters[round(params.high / spacing) + 1 :].abs().max() == 0


def test_channels_are_heard_apart() -> None:
    samples = torch.randn(2, 8_000, generator=torch.Generator().manual_seed(0)) / 10
    both = spectrogram(samples, replace(SMALL, stereo=True))
    assert torch.allclose(both[1:], spectrogram(samples[1:], SMALL), rtol=1e-4, atol=1)


def test_steps_of_nothing_and_endless_transforms_are_refused() -> None:
    for numbers in ({"sample_rate": 50, "high": 20}, {"padded_ms": 3_000}):
        with pytest.raises(ReverieError, match="and 131072 or fewer"):
            SpectrogramParams(**numbers)


def test_too_short_a_sound_is_refused() -> None:
    with pytest.raises(ReverieError, match=r"0\.20 s or more"):
        spectrogram(torch.zeros(1, 4_410), SpectrogramParams())
