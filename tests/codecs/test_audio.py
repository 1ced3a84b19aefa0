"""Does sound pass the autoencoder as the picture of its spectrogram does, whole, in stereo and as a loop?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reverie.codecs.image import ImageCodec
from reverie.codecs.spectrograms import AudioCodec, from_picture, hear, to_picture
from reverie.errors import ReverieError
from reverie.media.sound import Sound
from reverie.pipeline import Pipeline
from reverie.sound.spectrogram import SMALL, Circle


@pytest.fixture
def codec(tiny: Pipeline) -> AudioCodec:
    return AudioCodec(ImageCodec(tiny.autoencoder), SMALL)


def noise(seconds: float = 0.64, rate: int = 16_000, channels: int = 1) -> Sound:
    return Sound(torch.rand(channels, round(seconds * rate), generator=torch.Generator().manual_seed(0)) - 0.5, rate)


def test_latents_are_those_of_the_picture(codec: AudioCodec) -> None:
    """But for what bytes round."""
    latents = codec.encode(noise())
    assert latents.shape == (1, *codec.latent_shape(32))
    picture = to_picture(hear(noise(), SMALL), SMALL)
    assert torch.allclose(latents, codec.images.encode([picture]), atol=0.05)


def test_columns_are_filled_up_with_silence(codec: AudioCodec) -> None:
    assert codec.encode(noise(0.5)).shape[-1] == 4  # 25 columns
    with pytest.raises(ReverieError, match="not a multiple"):
        codec.latent_shape(25)


def test_any_sound_is_taken(codec: AudioCodec) -> None:
    """Of another rate and other channels."""
    assert codec.encode(noise(rate=44_100, channels=2)).shape == (1, *codec.latent_shape(32))


@pytest.mark.parametrize("stereo", [False, True])
@pytest.mark.parametrize("time", [{}, {"time": Circle}])
def test_sounds_are_as_long_as_their_columns(codec: AudioCodec, stereo: bool, time: dict[str, type[Circle]]) -> None:
    codec = replace(codec, params=replace(SMALL, stereo=stereo))
    latents = torch.randn(2, *codec.latent_shape(32), generator=torch.Generator().manual_seed(0))
    for sound in codec.sounds(latents, **time):
        assert sound.samples.shape == (1 + stereo, 32 * SMALL.hop)
        assert sound.rate == SMALL.sample_rate
        assert sound.peak == pytest.approx(10 ** (-1 / 20), abs=1e-4)


def test_pictures_tell_how_they_sound(codec: AudioCodec) -> None:
    (picture,) = codec.pictures(torch.zeros(1, *codec.latent_shape(32)))
    assert picture.size == (32, 128)
    assert replace(from_picture(picture)[1], columns=SMALL.columns) == SMALL
