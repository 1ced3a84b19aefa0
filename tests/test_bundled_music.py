"""Does the bundled model of music play what is asked? A judge that it never met hears it, as in benchmarks/music.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import reverie
from reverie.corpora.music.captions import clip_caption
from reverie.generate.notes import model_limits
from reverie.requests.music import Music
from reverie.requests.references import BUNDLED, MUSIC_NAME
from reverie.sound.spectrogram import SMALL
from reverie.train.listener import load_judge

JUDGE = Path(__file__).parents[1] / "benchmarks" / "music-judge"
LARGEST = 30_000_000  # bytes that may ship


@pytest.fixture(scope="module")
def player() -> reverie.Pipeline:
    return reverie.load("reverie-music", device="cpu")


def test_it_is_small_and_says_how_it_hears(player: reverie.Pipeline) -> None:
    assert sum(path.stat().st_size for path in BUNDLED[MUSIC_NAME].rglob("*") if path.is_file()) <= LARGEST
    assert player.spectrogram == SMALL


def test_what_its_captions_say_it_says_that_it_knows(player: reverie.Pipeline) -> None:
    """Of the clips that it learned from."""
    for index in range(300):
        assert model_limits(Music(prompt=clip_caption(0, index)), player) == ()


@pytest.mark.parametrize("steps", [12, 4, 2])
def test_asked_instruments_tempos_and_drums_are_heard(player: reverie.Pipeline, steps: int) -> None:
    """Most of them: of so few clips each may go wrong, chance alone gives 3 % of leads and a sixth of the tempos.

    Few steps are the student's.
    """
    if steps < 12:
        player = reverie.load("reverie-music-turbo", device="cpu")
    judge = load_judge(JUDGE)
    asked = [("piano", 128, False), ("trumpet", 96, False), ("distorted guitar", 112, True), ("flute", 84, False)]
    heard = []
    for lead, tempo, drums in asked:
        text = f"{lead} with drums, {tempo} bpm" if drums else f"{lead} solo, {tempo} bpm"
        (clip,) = player.music(text, seed=3, steps=steps)
        assert clip.seconds == pytest.approx(SMALL.seconds)
        heard.append(judge(clip))
    for told, part in (("lead", 0), ("tempo", 1), ("drums", 2)):
        right = [getattr(verdict, told) == one[part] for verdict, one in zip(heard, asked, strict=True)]
        assert sum(right) >= len(asked) - 1, (told, heard)


def test_chinese_is_understood(player: reverie.Pipeline) -> None:
    (clip,) = player.music("钢琴独奏，每分钟128拍", seed=3, steps=12)
    assert load_judge(JUDGE)(clip).lead == "piano"
