"""Do recipes get the pictures that they ask for: whole ones, crops of them, and sounds drawn as spectrograms?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.codecs.spectrograms import from_greys
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.fluidsynth import FONTS
from reverie.errors import ReverieError
from reverie.media import sound
from reverie.media.sound import Sound
from reverie.sound.spectrogram import SMALL, SpectrogramParams, to_mel
from reverie.train.examples import HELD_OUT_SEED, Pictures
from reverie.train.sources import ComposedMusic, Crops, ExampleSource, draw_spectrogram

played = pytest.mark.skipif(not any(font.is_file() for font in FONTS), reason="needs fluidsynth and a sound font")


def tone(hertz: float, seconds: float, channels: int = 1, rate: int = 16_000) -> Sound:
    time = torch.arange(round(seconds * rate)) / rate
    return Sound(0.5 * (2 * torch.pi * hertz * time).sin().expand(channels, -1), rate)


def test_pictures_are_the_largest_square_in_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = ExampleSource(pictures=str(tmp_path), caption="a square")
    examples = source.open(0, 16, SMALL)
    assert np.array_equal(examples.picture(0), np.full((16, 16, 3), 255))
    assert [examples.caption(0, turn) for turn in (0, 1)] == ["a square", "a square"]
    assert source.open(0, 8, SMALL).picture(0).shape == (8, 8, 3)
    assert source.open(0, 8, SMALL).identity != examples.identity
    assert isinstance(source.open_held_out(16, SMALL), Pictures)


@pytest.mark.parametrize("source", [ExampleSource(), ExampleSource(music=3, sounds="x")])
def test_one_source_is_needed(source: ExampleSource) -> None:
    with pytest.raises(ReverieError, match="give one of pictures, sounds and music"):
        source.open(0, 8, SMALL)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_is_one_dark_line(channels: int) -> None:
    """The row of 1000 Hz follows from the mel scale: bands of equal width, the lowest in the last row."""
    picture = draw_spectrogram(tone(1000, SMALL.seconds, channels), SMALL)
    assert picture.shape == (128, 256, 3)
    band = to_mel(1000) / to_mel(SMALL.high) * (SMALL.mels + 1) - 1
    assert picture[:, 100, 0].argmin() == pytest.approx(SMALL.mels - 1 - band, abs=1)
    assert picture[-1 - round(band) - 20, 100, 0] > picture[-1 - round(band), 100, 0] + 100


def test_a_clip_that_is_too_short_or_too_long_is_filled_up_or_cut() -> None:
    short, long = draw_spectrogram(tone(1000, 2.0), SMALL), draw_spectrogram(tone(1000, 7.0), SMALL)
    assert short.shape == long.shape == (128, 256, 3)
    assert (short[:, 101:] == 255).all()  # silence is white


def test_stereo_is_kept_where_it_is_asked_for() -> None:
    params = replace(SMALL, stereo=True)
    left = torch.cat([tone(1000, SMALL.seconds).samples, torch.zeros(1, round(SMALL.seconds * 16_000))])
    picture = draw_spectrogram(Sound(left, 16_000), params)
    mel = from_greys(torch.from_numpy(picture).permute(2, 0, 1).float(), params)
    assert mel[0].max() > 100 * mel[1].max()


def test_sounds_are_cut_into_clips(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    params = SpectrogramParams(sample_rate=16_000, step_ms=20, window_ms=64, padded_ms=64, high=8000, columns=50)
    joined = torch.cat([tone(500, 1.0).samples, tone(2000, 1.0).samples], 1)
    sound.write(Sound(joined, 16_000), tmp_path / "a.wav")
    examples = ExampleSource(sounds=str(tmp_path), caption="two tones").open(0, 8, params)
    assert len(examples) == 2
    low, high = (examples.picture(index)[:, 25, 0].argmin() for index in (0, 1))
    assert low > high  # the higher tone stands above
    assert (
        examples.identity
        != ExampleSource(sounds=str(tmp_path), caption="x").open(0, 8, replace(params, power=1)).identity
    )


@played
def test_music_tells_of_its_own_clips() -> None:
    music = ExampleSource(music=3).open(5, 8, SMALL)
    for index in range(3):
        clip = clip_at(5, index)
        told = {music.caption(index, turn) for turn in range(40)}
        assert len(told) > 5
        assert any(clip.lead in caption for caption in told)
    assert np.array_equal(music.picture(1), music.picture(1))
    assert not np.array_equal(music.picture(1), music.picture(2))
    assert ExampleSource(music=3).open_held_out(8, SMALL).seed == HELD_OUT_SEED


@played
def test_the_identity_of_music_knows_how_it_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ComposedMusic(5, 3, SMALL).identity
    assert ComposedMusic(5, 3, SMALL).identity == before
    assert ComposedMusic(6, 3, SMALL).identity != before
    with monkeypatch.context() as patch:
        patch.setattr("reverie.train.sources.default_font", lambda: Path("Other.sf2"))
        assert ComposedMusic(5, 3, SMALL).identity != before
    monkeypatch.setattr("reverie.train.sources.clip_at", lambda seed, index: clip_at(seed, index + (index == 2)))
    assert ComposedMusic(5, 3, SMALL).identity != before


def test_crops_are_cut_from_all_over(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.stack([ramp] * 3, -1)).save(tmp_path / "a.png")
    crops = Crops(ExampleSource(pictures=str(tmp_path), caption="a ramp").open(0, 16, SMALL), seed=1, size=4)
    corners = set()
    for index in range(300):
        crop = crops(index)
        y, x = divmod(int(crop[0, 0, 0]), 16)
        assert np.array_equal(crop, np.stack([ramp[y : y + 4, x : x + 4]] * 3))
        corners.add((y, x))
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(13))
    assert np.array_equal(crops(7), Crops(crops_of(tmp_path), seed=1, size=4)(7))


def crops_of(folder: Path) -> Pictures:
    found = ExampleSource(pictures=str(folder), caption="a ramp").open(0, 16, SMALL)
    assert isinstance(found, Pictures)
    return found
