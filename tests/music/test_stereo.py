"""Do two sides make the sound wide, and together the sound that they are made of?"""

from __future__ import annotations

import pytest
import torch

from reverie.music.plan import WIDTH, widen_stereo

RATE = 8000
SOUND = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(3)) / 5


def test_the_mean_of_both_sides_is_the_sound() -> None:
    assert torch.allclose(widen_stereo(SOUND, RATE).mean(0, keepdim=True), SOUND, atol=1e-6)


def test_the_sides_differ_and_are_equally_loud_at_every_frequency() -> None:
    left, right = widen_stereo(SOUND, RATE)
    assert torch.allclose(torch.fft.rfft(left).abs(), torch.fft.rfft(right).abs(), atol=1e-2)
    alike = (1 - WIDTH**2) / (1 + WIDTH**2)  # of a middle and a side that have nothing in common
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] == pytest.approx(alike, abs=0.05)


def test_a_loop_stays_one() -> None:
    rolled = widen_stereo(SOUND.roll(1234, -1), RATE)
    assert torch.allclose(rolled, widen_stereo(SOUND, RATE).roll(1234, -1), atol=1e-5)


def test_sounds_shorter_than_the_filter() -> None:
    short = SOUND[:, :50]
    assert torch.allclose(widen_stereo(short, RATE).mean(0, keepdim=True), short, atol=1e-6)
