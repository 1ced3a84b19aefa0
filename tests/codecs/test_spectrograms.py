"""Is the picture of a sound the one that Riffusion draws, and do pictures of both programs open here?"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.codecs.spectrograms import LOUD, from_picture, hear, to_picture
from reverie.errors import ReverieError
from reverie.media.pictures import open_picture, save
from reverie.media.sound import Sound
from reverie.sound.spectrogram import SMALL, SpectrogramParams, spectrogram

SMALLER = SpectrogramParams(sample_rate=22_050, mels=64, high=8_000)


def noisy_tones(seconds: float, rate: int) -> np.ndarray:
    """Sound 16-bit tones in noise, two channels."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=(2, len(time))) * 0.02
    tones = [0.3 * np.sin(2 * math.pi * hertz * time) * np.exp(-2 * time) for hertz in (220, 1_760)]
    return np.round((np.stack(tones) + noise) * 32_767)


def reference_picture(samples: np.ndarray, params: SpectrogramParams) -> np.ndarray:
    """Draw (c, n) 16-bit samples by the reference's formulas, frame by frame in float64.

    torchaudio's Spectrogram (n_fft, win_length, hann, reflect), librosa's mel(htk=True, norm=None) and
    riffusion/util/image_util.py: image_from_spectrogram, written out.
    """
    n_fft, width, hop = params.n_fft, params.window, params.hop
    window = np.zeros(n_fft)
    left = (n_fft - width) // 2
    window[left : left + width] = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(width) / width)
    padded = np.pad(samples, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    starts = range(0, samples.shape[1] + 1, hop)
    bins = np.abs(np.stack([np.fft.rfft(padded[:, at : at + n_fft] * window) for at in starts], -1))

    corners = np.linspace(*(2595 * np.log10(1 + hertz / 700) for hertz in (params.low, params.high)), params.mels + 2)
    corners = 700 * (10 ** (corners / 2595) - 1)
    centres = np.arange(n_fft // 2 + 1) * params.sample_rate / n_fft
    filters = np.zeros((params.mels, len(centres)))
    for band, (low, middle, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        filters[band] = np.maximum(0, np.minimum((centres - low) / (middle - low), (high - centres) / (high - middle)))
    mel = np.stack([filters @ channel for channel in bins])

    levels = (255 - (mel / mel.max()) ** params.power * 255).astype(np.uint8)
    levels = np.repeat(levels, 3, 0) if len(levels) == 1 else np.concatenate([np.zeros_like(levels[:1]), levels])
    return levels.transpose(1, 2, 0)[::-1]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("params", [SpectrogramParams(), SMALL, SMALLER])
def test_the_picture_is_riffusions(params: SpectrogramParams, channels: int) -> None:
    samples = noisy_tones(0.6, params.sample_rate)[:channels]
    wanted = reference_picture(samples, params)
    mel = spectrogram(torch.from_numpy(samples / 32_767).float(), params)
    made = np.asarray(to_picture(mel, params), dtype=int)
    assert made.shape == (params.mels, samples.shape[1] // params.hop, 3)
    assert (np.abs(made - wanted[:, : made.shape[1]]) <= 1).mean() > 0.99
    assert np.ptp(made[..., 1]) > 100


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_tell_how_they_sound(tmp_path: Path, suffix: str, channels: int) -> None:
    mel = torch.from_numpy(np.random.default_rng(0).uniform(size=(channels, 64, 40)) * 5e6).float()
    picture = to_picture(mel, SMALLER)
    picture.info["reverie"] = '{"prompt": "jazz"}'
    save(picture, tmp_path / f"a{suffix}")
    opened = open_picture(tmp_path / f"a{suffix}")
    back, params = from_picture(opened)
    assert params == replace(SMALLER, stereo=channels == 2)
    assert opened.info["reverie"] == '{"prompt": "jazz"}'
    if suffix == ".png":
        assert (back - mel).abs().max() < 0.01 * mel.max()


def test_tags_are_riffusions(tmp_path: Path) -> None:
    """Its reader looks up every tag of a PNG by number, and fails on others (image_util.py: exif_from_image)."""
    save(to_picture(torch.full((1, 512, 8), 1e6), SpectrogramParams()), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert dict(opened.getexif()) == {
            **{11000: 44_100, 11005: 0, 11010: 10, 11020: 100, 11030: 400, 11040: 512, 11050: 0, 11060: 10_000},
            **{11070: 0.25, 11080: 1e6},
        }


def test_a_cameras_tags_are_not_kept(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    picture.getexif()[274] = 6  # orientation
    save(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert not opened.getexif()


def test_a_picture_that_does_not_tell_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="taken for one"):
        mel, params = from_picture(Image.new("L", (16, 512), 0))
    assert params == SpectrogramParams()
    assert mel.max().item() == pytest.approx(LOUD, rel=0.01)
    with pytest.warns(UserWarning, match="taken for one"):
        assert from_picture(Image.new("RGB", (16, 128)), SMALL)[1] == SMALL


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        (11040, 96, "64 pixels high"),
        (11000, 0, "describes no spectrogram"),
        (11060, 30_000, "are not possible"),
        (11000, 2**31 - 1, "transforms of"),
        (11000, math.inf, "tell no spectrogram's parameters"),
        (11080, "loud", "tell no spectrogram's parameters"),
        (11080, math.nan, "largest amplitude of nan"),
        (11080, -1.0, "largest amplitude of -1"),
    ],
)
def test_tags_that_make_no_sense_are_refused(tag: int, value: object, told: str) -> None:
    picture = to_picture(torch.ones(1, 64, 8), SMALLER)
    exif = picture.getexif()
    exif[tag] = value
    with pytest.raises(ReverieError, match=told):
        from_picture(picture)


def test_any_sound_is_heard() -> None:
    """Of another rate and other channels."""
    sound = Sound(torch.rand(2, round(0.64 * 44_100), generator=torch.Generator().manual_seed(0)) - 0.5, 44_100)
    assert hear(sound, SMALL).shape == (1, SMALL.mels, 32)
    assert hear(sound, replace(SMALL, stereo=True)).shape == (2, SMALL.mels, 32)


def test_silence_is_white() -> None:
    picture = to_picture(torch.zeros(1, 64, 8), SMALLER)
    assert picture.getextrema() == ((255, 255),) * 3
    assert from_picture(picture)[0].max() == 0
