"""Beats are told from tones as librosa tells them, and they move the path as nateraw's videos are moved.

The golden values are librosa 0.11.0's (`decompose.hpss`, `filters.mel`, `onset.onset_strength`, `onset_detect`), and
those of nateraw's `get_timesteps_arr` (stable-diffusion-videos), on the sound of `music` at 22,050 Hz.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from reverie.animation import timeline
from reverie.animation.timeline import Envelope, beat_places
from reverie.errors import ReverieError

HITS = ((0.25, 0.5), (0.75, 0.9), (1.0, 0.4), (1.8, 0.7), (2.5, 1.0))  # seconds and loudness
NATERAW = [0.0, 0.0002, 0.092, 0.092, 0.3924, 0.4385, 0.4516, 0.4516, 0.4516, 0.6172, 0.6328, 0.6328, 0.6328]
NATERAW += [0.9999, 0.9999]  # every sixth of 90 frames


@dataclass(frozen=True)
class Sound:
    samples: Tensor
    rate: int


def music(rate: int = 22_050, seconds: float = 3.0) -> Sound:
    """Two tones that fade in and out, and hits of decaying hiss."""
    t = np.arange(int(seconds * rate)) / rate
    y = 0.2 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 660 * t)
    y *= np.clip(np.minimum(t, seconds - t) / 0.1, 0, 1)
    for at, loud in HITS:
        k, start = np.arange(int(0.1 * rate)), int(at * rate)
        y[start : start + len(k)] += loud * 0.5 * np.exp(-k / (0.015 * rate)) * np.sin(12.9898 * k * k)
    return Sound(torch.from_numpy(y.astype(np.float32))[None], rate)


def tones(seconds: float = 2.0) -> Sound:
    t = torch.arange(int(seconds * 22_050)) / 22_050
    return Sound((0.3 * torch.sin(2 * torch.pi * 330 * t))[None], 22_050)


def test_what_is_percussive_is_what_librosa_says() -> None:
    samples = music().samples[0]
    spectrum = torch.stft(
        samples, 2048, 512, window=torch.hann_window(2048), pad_mode="constant", return_complex=True
    ).abs()
    found = timeline.percussive(spectrum)
    assert found.shape == (1025, 130)
    golden = {(40, 10): 0.01962, (41, 33): 0.1069, (300, 33): 0.38059, (700, 108): 2.01313, (20, 0): 0.00557}
    golden |= {(61, 60): 4e-5, (1024, 129): 0.0, (512, 78): 1.3932}
    for place, value in golden.items():
        assert found[place].item() == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_mel_filters_are_librosas() -> None:
    filters = timeline._mel_filters(torch.arange(1025) * 22_050 / 2048)
    assert filters.shape == (128, 1025)
    assert filters.sum().item() == pytest.approx(11.8866806, rel=1e-5)
    golden = {(0, 1): 0.0161829, (60, 170): 0.0105919, (127, 1000): 0.00312625, (5, 10): 0.0}
    for place, value in golden.items():
        assert filters[place].item() == pytest.approx(value, rel=1e-4)


def test_onset_strength_is_librosas() -> None:
    strength = timeline.onset_strength(music())
    golden = {10: 0.0277, 11: 9.2614, 12: 29.7896, 32: 0.0058, 33: 34.6536, 78: 25.6226, 108: 21.6608}
    offset = 1  # librosa delays by two frames where we delay by one, and finds its peaks a frame before
    for frame, value in golden.items():
        assert strength.values[frame - offset] == pytest.approx(value, rel=0.02, abs=0.02)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_onsets_are_found_where_the_hits_are(rate: int) -> None:
    strength = timeline.onset_strength(music(rate))
    found = timeline.onsets(strength) / strength.rate
    assert len(found) == len(HITS)
    assert np.abs(found - [at for at, _ in HITS]).max() < 0.02


def test_the_path_follows_nateraws_time_map() -> None:
    """His spectrum passes once more through time, and his frames are counted a little otherwise."""
    found = beat_places(music(), (0.0, 3.0), np.linspace(0, 3, 90).tolist())
    assert found[0] == 0
    assert found[-1] == 1
    assert np.abs(np.array(found)[::6] - NATERAW).max() < 0.02


@pytest.mark.parametrize("drive", sorted(timeline.DRIVES))
@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_hits_move_the_path_and_tones_do_not(drive: str, rate: int) -> None:
    def moved(start: float, end: float) -> float:
        a, b = beat_places(music(rate), (0.2, 3.0), (start, end), drive=drive)
        return b - a

    assert moved(0.4, 0.7) < 0.25 * moved(0.7, 1.0)
    assert moved(2.1, 2.45) < 0.1 * moved(2.45, 2.8)
    assert sum(moved(at - 0.05, at + 0.15) for at, _ in HITS) > 0.7


@pytest.mark.parametrize("drive", sorted(timeline.DRIVES))
def test_keyframes_are_met_at_their_times_and_time_never_goes_back(drive: str) -> None:
    knots = (0.0, 0.5, 1.7, 2.9)
    assert beat_places(music(), knots, knots, drive=drive) == [0, 1, 2, 3]
    places = np.array(beat_places(music(), knots, np.linspace(0, 2.9, 200).tolist(), drive=drive))
    assert (np.diff(places) >= 0).all()
    assert all(k <= place <= k + 1 for k in range(3) for place in places[(places > k) & (places < k + 1)])


def test_smoothing_goes_from_the_sound_to_even_time() -> None:
    times = np.linspace(0, 3, 31)
    driven, half, even = (
        np.array(beat_places(music(), (0.0, 3.0), times.tolist(), smooth=smooth)) for smooth in (0.0, 0.5, 1.0)
    )
    assert np.allclose(even, times / 3)
    assert np.allclose(half, (driven + even) / 2)
    assert np.abs(driven - even).max() > 0.1


@pytest.mark.parametrize("drive", sorted(timeline.DRIVES))
def test_silence_moves_the_path_evenly(drive: str) -> None:
    silent = Sound(torch.zeros(2, 22_050), 22_050)
    assert np.allclose(beat_places(silent, (0.0, 1.0), (0.0, 0.25, 0.5, 1.0), drive=drive), (0, 0.25, 0.5, 1))


def test_a_sound_that_ends_early_lets_the_path_go_on_evenly() -> None:
    """It is cut within a bar: what follows moves as fast as the sound did in the mean."""
    times = np.linspace(3.1, 6, 4)
    places = np.array(beat_places(music(), (0.0, 6.0), times.tolist()))
    assert np.allclose(np.diff(places), np.diff(places)[0], rtol=1e-6)
    assert places[0] == pytest.approx(0.5, abs=0.02)


def test_the_channels_are_heard_together() -> None:
    one = music()
    both = Sound(torch.cat([one.samples * 2, torch.zeros_like(one.samples)]), one.rate)
    times = np.linspace(0, 3, 20).tolist()
    assert np.allclose(beat_places(both, (0.0, 3.0), times), beat_places(one, (0.0, 3.0), times), atol=1e-5)


def test_a_tone_alone_has_hardly_any_percussive_energy() -> None:
    def energy(sound: Sound) -> float:
        spectrum, _, _ = timeline._spectrum(sound)
        middle = slice(10, -10)  # where it neither begins nor ends
        return (timeline.percussive(spectrum)[:, middle].square().sum() / spectrum[:, middle].square().sum()).item()

    assert energy(tones()) < 0.01
    click = torch.zeros(1, 44_100)
    click[0, 22_050] = 1
    assert energy(Sound(click, 22_050)) > 0.99


def test_travelling_is_the_integral_of_the_envelope() -> None:
    envelope = Envelope(np.array([1.0, 3.0, 2.0, 2.0]), rate=2.0)
    times = np.array([-0.25, 0.25, 0.5, 0.75, 1.25, 1.75, 2.75])
    assert envelope.distance_at(times).tolist() == [0, 0.5, 1.25, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drive": "loud"}, "unknown drive 'loud'; choose from energy, onsets"),
        ({"smooth": 2.0}, "smoothing 2 is not possible; give 0 (by the sound alone) to 1 (evenly)"),
        ({"knots": (1.0, 1.0)}, "keyframes at [1.0, 1.0] s do not rise in time; give two or more, each after the last"),
        ({"sound": Sound(torch.zeros(1, 0), 22_050)}, "the sound is empty; give one that lasts"),
    ],
)
def test_what_cannot_be_walked_is_said_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ReverieError) as error:
        beat_places(**{"sound": tones(), "knots": (0.0, 1.0), "times": (0.0, 0.5)} | arguments)
    assert str(error.value) == message
