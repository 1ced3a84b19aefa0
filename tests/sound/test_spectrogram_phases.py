"""Is the sound that is found near to the one that was heard? Against plain Griffin-Lim, with loops, stereo, silence."""

from __future__ import annotations

import pytest
import torch

from reverie.sound.spectrogram import (
    FITTING,
    FULL_SCALE,
    MOMENTUM,
    SMALL,
    Circle,
    Line,
    SpectrogramParams,
    bands_of,
    estimate_phases,
    spectrogram,
    summits_of,
    waveform,
)


def melody(params: SpectrogramParams, seconds: float = 1.6) -> torch.Tensor:
    """Play four notes of decaying harmonics, (1, n)."""
    time = torch.arange(round(seconds * params.sample_rate)) / params.sample_rate
    note = (time * 4 / seconds).long().clamp(max=3)
    pitch = torch.tensor([220.0, 330.0, 277.2, 440.0])[note]
    since = time - note * seconds / 4
    waves = [torch.sin(2 * torch.pi * k * pitch * since) * torch.exp(-3 * k * since) / k for k in range(1, 7)]
    return torch.stack(waves).sum(0, keepdim=True) / 4


def convergence(before: torch.Tensor, after: torch.Tensor, params: SpectrogramParams) -> float:
    """Return the spectral convergence in dB."""
    window = torch.hann_window(params.window)
    s, x = (
        torch.stft(part, params.window, params.hop, window=window, return_complex=True).abs()
        for part in (before, after)
    )
    return 20 * ((s - x).norm() / s.norm()).log10().item()


@pytest.mark.parametrize("params", [SpectrogramParams(), SMALL])
def test_the_sound_comes_back(params: SpectrogramParams) -> None:
    given = melody(params)
    found = waveform(spectrogram(given, params), params)
    assert found.shape == given.shape
    assert convergence(given, found, params) < -18
    assert found.square().mean().item() == pytest.approx(given.square().mean().item(), rel=0.1)  # as loud, too


@pytest.mark.parametrize("time", [Line, Circle])
def test_iterations_are_those_of_complex_arithmetic(time: type[Line]) -> None:
    """Of the first few: later ones make differences of rounding larger, whatever the arithmetic."""
    few = 4
    mel, bands = spectrogram(melody(SMALL), SMALL), bands_of(SMALL)
    magnitudes = mel.max().expand(1, mel.shape[-1], bands.padded // 2 + 1)
    for _ in range(FITTING):
        magnitudes = bands.towards(mel, magnitudes)
    spectrum = torch.polar(magnitudes, estimate_phases(magnitudes, bands))
    frames, before = time(bands.window, bands.hop, mel.shape[-1], bands.padded), torch.zeros_like(spectrum)
    for _ in range(few):
        now = frames.analyse(frames.synthesise(spectrum))
        ahead = now + MOMENTUM * (now - before)
        spectrum, before = ahead * (bands.towards(mel, now.abs()) / ahead.abs().clamp(min=1e-9)), now
    wanted = frames.synthesise(spectrum) / FULL_SCALE
    assert (waveform(mel, SMALL, time, few) - wanted).norm() < 1e-5 * wanted.norm()


def test_better_than_griffin_lim_from_nowhere() -> None:
    given = melody(SMALL)
    frames = Line(SMALL.window, SMALL.hop, given.shape[1] // SMALL.hop, SMALL.n_fft)
    magnitudes = frames.analyse(given).abs()
    spectrum = magnitudes.to(torch.cfloat)
    for _ in range(32):  # and it is given the true magnitudes, not their bands
        now = frames.analyse(frames.synthesise(spectrum))
        spectrum = magnitudes * now / now.abs().clamp(min=1e-9)
    theirs = frames.synthesise(spectrum)
    ours = waveform(spectrogram(given, SMALL), SMALL)
    assert convergence(given, ours, SMALL) < convergence(given, theirs, SMALL) - 3


def test_a_tone_starts_with_its_own_phases() -> None:
    """What is suggested for a steady tone, laid together without any iteration, is that tone."""
    time = torch.arange(16_000) / SMALL.sample_rate
    tone = torch.sin(2 * torch.pi * 1_003 * time)[None] / 2
    bands = bands_of(SMALL)
    frames = Line(bands.window, bands.hop, 50, bands.padded)
    magnitudes = frames.analyse(tone).abs()
    made = frames.synthesise(torch.polar(magnitudes, estimate_phases(magnitudes, bands)))
    assert convergence(tone[:, 1_000:12_000], made[:, 1_000:12_000], SMALL) < -14  # from nowhere it is -2


def test_summits_are_reached_by_going_upwards() -> None:
    assert summits_of(torch.tensor([[[3.0, 1, 2, 5, 4, 0, 1]]])).tolist() == [[[0, 3, 3, 3, 3, 6, 6]]]


def test_a_circle_has_no_seam() -> None:
    """A tone of whole periods goes on over the end as it goes on elsewhere; one cut open does not."""
    params, columns = SMALL, 50
    mel = spectrogram(torch.sin(2 * torch.pi * 500 * torch.arange(32_000) / params.sample_rate)[None] / 2, params)
    loop = waveform(mel[..., 20 : 20 + columns], params, Circle)
    assert loop.shape == (1, columns * params.hop)
    assert jump(loop) < 1.5
    twice = spectrogram(loop.repeat(1, 3), params)[..., columns : 2 * columns]
    assert (twice - mel[..., 20 : 20 + columns]).norm() < 0.1 * mel[..., 20 : 20 + columns].norm()


def jump(loop: torch.Tensor) -> float:
    """Return how much louder than elsewhere what is new to the ear is around the seam: the second difference."""
    bend = loop[0].roll(len(loop[0]) // 2).diff(n=2).abs()
    middle = len(bend) // 2
    return (bend[middle - 4 : middle + 4].max() / bend.quantile(0.99)).item()


def test_channels_keep_their_places() -> None:
    """What is in the middle stays there, what is at one side stays there."""
    given = melody(SMALL)
    middle = waveform(spectrogram(given.repeat(2, 1), SMALL), SMALL)
    assert torch.equal(middle[0], middle[1])
    left = waveform(spectrogram(torch.cat([given, given / 4]), SMALL), SMALL)
    assert torch.allclose(left[1], left[0] / 4, atol=2e-3)


@pytest.mark.parametrize("time", [Line, Circle])
def test_silence_and_short_ones(time: type[Line]) -> None:
    assert waveform(torch.zeros(2, SMALL.mels, 8), SMALL, time).abs().max() == 0
    short = waveform(torch.full((1, SMALL.mels, 1), 0.1 * FULL_SCALE), SMALL, time)
    assert short.shape == (1, SMALL.hop)
    assert short.isfinite().all()


def test_the_same_each_time() -> None:
    mel = spectrogram(melody(SMALL, 0.8), SMALL)
    assert torch.equal(waveform(mel, SMALL), waveform(mel, SMALL))
