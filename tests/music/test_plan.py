"""Are clips as long as asked to the sample, and does the way lead through their middles?"""

from __future__ import annotations

import pytest
import torch

from reverie.errors import ReverieError
from reverie.music.plan import MusicPlan, plan
from reverie.requests.music import Music
from reverie.sound.spectrogram import SMALL, SpectrogramParams


def laid(params: SpectrogramParams = SMALL, given: int | None = None, **fields: object) -> MusicPlan:
    return plan(Music.of(fields), params, 8, given)


@pytest.mark.parametrize("params", [SMALL, SpectrogramParams()])
def test_a_clip_of_the_models_own_length_is_one_window(params: SpectrogramParams) -> None:
    found = laid(params)
    assert found.total == round(5.12 * params.sample_rate)
    assert found.length == found.width == params.columns // 8
    assert found.windows.whole


@pytest.mark.parametrize("seconds", [0.1, 3.0, 5.2, 12.34])
def test_latents_reach_to_the_end(seconds: float) -> None:
    found = laid(seconds=seconds)
    assert found.total == round(seconds * 16_000)
    assert (found.columns - 1) * SMALL.hop < found.total <= found.columns * SMALL.hop
    assert found.length >= found.width
    assert found.length * 8 >= found.columns
    assert found.length == found.width or (found.length - 1) * 8 < found.columns


def test_a_loop_is_whole_bars_to_the_sample_and_its_latents_as_near_as_they_go() -> None:
    found = laid(bpm=96, seconds=2.5, loop=True)
    assert found.total == 40_000
    assert found.columns == 125
    assert found.length == 16  # 128 columns, which are then stretched to 125
    assert len(found.windows) == 1


@pytest.mark.parametrize(("bpm", "beats", "each"), [(72, 4, 4), (96, 4, 4), (144, 4, 8), (96, 3, 3), (120, 12, 6)])
def test_windows_begin_on_bars_where_there_is_a_tempo(bpm: float, beats: int, each: int) -> None:
    """As many whole bars apart as lie in two thirds of a window, or else beats; to the nearest latent."""
    beat = 60 / bpm / 0.16
    for found in (laid(bpm=bpm, beats=beats, seconds=30), laid(prompt=f"jazz, {bpm} bpm", beats=beats, seconds=30)):
        starts = found.windows.starts
        assert all(abs(start - k * each * beat) <= 0.5 + 1e-9 for k, start in enumerate(starts))
        assert starts[-1] + found.width == found.length >= found.columns / 8
    loop = laid(bpm=bpm, beats=beats, seconds=30, loop=True)
    ratio = loop.length / loop.clip
    assert all(abs(start - round(k * loop.stride)) <= 1 for k, start in enumerate(loop.windows.starts))
    assert loop.stride / beat / ratio == pytest.approx(round(loop.stride / beat / ratio))
    assert loop.stride <= 2 / 3 * loop.width


def test_a_given_sound_says_the_length() -> None:
    assert laid(given=123_457).total == 123_457


def test_a_walk_goes_from_the_middle_of_the_first_clip_to_that_of_the_last() -> None:
    found = laid(to="b", walk=5, seconds=2.5)
    assert found.total == 5 * 40_000
    middles = [(k + 0.5) * found.clip for k in range(5)]
    assert [found.part(middle) for middle in middles] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert (found.part(0), found.part(found.length)) == (0, 1)


def test_clips_begin_on_the_latent_nearest_to_their_time() -> None:
    found = laid(to="b", walk=4, seconds=2.5)  # 15.625 latents each
    numbered = torch.arange(4.0)[:, None] * 100 + torch.arange(float(found.clip_length))
    row = found.lay_out(numbered[:, None])[0, 0]
    begins = [16, 31, 47]
    assert row[:15].tolist() == list(range(15))
    for k, begin in enumerate(begins, 1):
        assert row[begin : begin + 15].tolist() == [100 * k + column for column in range(15)]
        assert row[begin - 1] < 100 * k


def test_columns_are_laid_out_as_their_latents_are() -> None:
    found = laid(to="b", walk=3, seconds=2.5)
    latents = torch.randn(1, 4, found.clip_length)
    columns = latents.repeat_interleave(8, dim=-1)
    assert torch.equal(found.lay_out(columns), found.lay_out(latents).repeat_interleave(8, dim=-1))


def test_what_latents_do_not_fill_is_told() -> None:
    with pytest.raises(ReverieError, match="36 bands are no whole latents of 8"):
        laid(SpectrogramParams(mels=36))
