"""Does a long sound in sections come to what it is in one piece, within bounded memory and without holes?"""

from __future__ import annotations

import pytest
import torch

from reverie.codecs.image import ImageCodec
from reverie.media.sound import Sound
from reverie.music import sections
from reverie.music.sections import decode_levels, encode_levels, in_sections, mel_of_sound, sound_of_mel
from reverie.pipeline import Pipeline
from reverie.sound.spectrogram import SpectrogramParams, spectrogram


@pytest.mark.parametrize("length", [10, 11, 24, 25, 100])
def test_what_knows_no_neighbours_is_the_same_in_sections(length: int) -> None:
    x, calls = torch.randn(2, length), []

    def doubled(part: torch.Tensor) -> torch.Tensor:
        calls.append(part.shape[-1])
        return part.repeat_interleave(2, dim=-1) + 1

    assert torch.allclose(in_sections(doubled, x, 10, 3), x.repeat_interleave(2, dim=-1) + 1, atol=1e-6)
    assert max(calls) == 10
    assert len(calls) == (1 if length == 10 else -(-(length - 3) // 7))


def test_sounds_that_are_not_alike_keep_their_power() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(part: torch.Tensor) -> torch.Tensor:
        return torch.randn(4000, part.shape[-1], generator=generator)

    power = in_sections(noise, torch.zeros(1, 60), 20, 8, torch.sqrt).square().mean(0)
    assert power.min() > 0.9
    assert power.max() < 1.1


def test_a_sound_is_heard_in_sections_as_in_one(hearing: SpectrogramParams, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = torch.randn(1, 8 * 8000, generator=torch.Generator().manual_seed(1)) / 10
    whole = spectrogram(samples, hearing)
    monkeypatch.setattr(sections, "NUMBERS", 1)  # sections of 4 s
    parts = mel_of_sound(Sound(samples, 8000), hearing)
    assert parts.shape == whole.shape
    assert (parts - whole).norm() / whole.norm() < 0.01


def test_stereo_is_mixed_down_where_the_model_hears_one_channel(hearing: SpectrogramParams) -> None:
    left, right = torch.randn(2, 8000) / 10
    mixed = mel_of_sound(Sound(torch.stack([left, right]), 8000), hearing)
    assert torch.allclose(mixed, spectrogram(((left + right) / 2)[None], hearing), rtol=1e-4, atol=1e-2)


def test_coding_in_sections_differs_by_statistics_alone(player: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random autoencoder, whose attention and normalisation reach over all that it sees, answers much the same."""
    greys = torch.rand(3, 32, 200 * 8, generator=torch.Generator().manual_seed(1)) * 255
    whole = encode_levels(player.codec, greys)
    restored = decode_levels(player.codec, whole)
    assert whole.shape == (1, 4, 4, 200)
    assert restored.shape == greys.shape
    monkeypatch.setattr(sections, "PIXELS", 1)
    codec = ImageCodec(player.autoencoder, whole=32 * 8 * 64)
    assert (encode_levels(codec, greys) - whole).abs().mean() < 0.1 * whole.std()
    assert (decode_levels(codec, whole) - restored).abs().mean() < 0.25 * restored.std()


def test_phases_of_sections_keep_the_loudness(hearing: SpectrogramParams, monkeypatch: pytest.MonkeyPatch) -> None:
    mel = torch.full((1, 32, 900), 1e5)
    monkeypatch.setattr(sections, "NUMBERS", 1)
    samples = sound_of_mel(mel, hearing)
    assert samples.shape == (1, 900 * hearing.hop)
    powers = samples[0, 800:-800].unfold(0, 800, 800).square().mean(-1)
    assert powers.max() / powers.min() < 3
