from __future__ import annotations

import pytest
import torch

from reverie.models.classifier import FLOOR, Listener, ListenerConfig, loudness, rhythm

CONFIG = ListenerConfig(instruments=5, tempos=6, widths=(4, 8), pulse_width=8)


def spectrograms(count: int = 3, columns: int = 312) -> torch.Tensor:
    return torch.rand(count, CONFIG.bands, columns, generator=torch.Generator().manual_seed(0)).square()


def test_loudness_does_not_depend_on_the_gain() -> None:
    mel = spectrograms()
    torch.testing.assert_close(loudness(1000 * mel), loudness(mel))


def test_loudness_is_in_decibels() -> None:
    mel = torch.tensor([[[1.0, 0.1, 0.01, FLOOR, 0.0]]])  # 0, -20, -40, -80 dB and nothing, of 80 dB that count
    torch.testing.assert_close(loudness(mel), torch.tensor([[[1.0, 0.5, 0.0, -1.0, -1.0]]]))


def test_silence_is_finite() -> None:
    assert loudness(torch.zeros(1, 4, 9)).isfinite().all()
    assert rhythm(torch.zeros(1, 4, 9), 2).isfinite().all()


@pytest.mark.parametrize("period", [20, 27, 52])
def test_a_regular_pulse_is_alike_to_itself_one_period_later(period: int) -> None:
    level = torch.full((1, 8, 312), -1.0)
    level[..., period // 2 :: period] = 1
    alike = rhythm(level, 4)
    torch.testing.assert_close(alike[..., 0], torch.ones(1, 4))
    assert (alike[..., 10 : period + period // 2].argmax(-1) + 10 == period).all()


def test_a_listener_hears_each_clip_alone() -> None:
    torch.manual_seed(0)
    listener = Listener(CONFIG).eval()
    mel = spectrograms()
    heard = listener(mel)
    assert (heard.instrument.shape, heard.tempo.shape, heard.drums.shape) == ((3, 5), (3, 6), (3,))
    for row, part in enumerate(heard):
        torch.testing.assert_close(listener(mel[1:2])[row], part[1:2])
