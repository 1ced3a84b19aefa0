"""Do frames give back the waveform that they were cut from, along a line and around a circle?"""

from __future__ import annotations

import pytest
import torch

from reverie.sound.spectrogram import Circle, Line

SHAPES = [(64, 16, 20, 64), (64, 20, 13, 128), (60, 16, 3, 60)]  # window, hop, count, padded


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [Line, Circle])
def test_the_waveform_comes_back_everywhere(shape: tuple[int, int, int, int], kind: type[Line]) -> None:
    frames = kind(*shape)
    samples = noise(2, frames.samples)
    assert torch.allclose(frames.synthesise(frames.analyse(samples)), samples, atol=1e-4)


def test_a_line_is_mirrored_as_spectrograms_are() -> None:
    samples = noise(2, 320)
    wanted = torch.stft(samples, 128, 16, 64, torch.hann_window(64), pad_mode="reflect", return_complex=True).abs()
    assert torch.allclose(Line(64, 16, 20, 128).analyse(samples).abs(), wanted[..., :20].mT, atol=1e-4)


def test_a_circle_goes_on() -> None:
    samples = noise(1, 160)
    turns = Line(64, 16, 30, 64).analyse(samples.repeat(1, 3))
    assert torch.allclose(Circle(64, 16, 10, 64).analyse(samples), turns[:, 10:20], atol=1e-4)


def test_synthesis_is_the_least_squares_solution() -> None:
    """Of waveforms none has spectra nearer to given ones, which no waveform has."""
    frames = Line(16, 4, 6, 16)
    spectrum = torch.randn(1, 6, 9, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0))
    spectrum[..., 0], spectrum[..., -1] = spectrum[..., 0].real.clone(), spectrum[..., -1].real.clone()
    clicks = torch.eye(frames.samples)
    as_matrix = torch.fft.irfft(frames.analyse(clicks), 16).flatten(1).T
    wanted = torch.fft.irfft(spectrum, 16).flatten(1).T
    solved = torch.linalg.lstsq(as_matrix, wanted).solution.T
    assert torch.allclose(frames.synthesise(spectrum), solved, atol=1e-4)
