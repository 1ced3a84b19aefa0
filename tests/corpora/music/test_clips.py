"""Is clip n always the same, is everything met as often as told, and what is held out never?"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from reverie.corpora.music.clips import KEYS, TEMPOS, clip_at, draw_clip, is_held_out
from reverie.corpora.music.instruments import BASSES, INSTRUMENTS
from reverie.corpora.music.score import MusicClip
from reverie.corpora.music.styles import STYLES

DRAWN = [draw_clip(np.random.default_rng((5, index))) for index in range(3000)]


def test_clips_are_pure() -> None:
    clips = [clip_at(3, index) for index in range(8)]
    assert [clip_at(3, index) for index in reversed(range(8))] == clips[::-1]
    assert len(set(clips)) == 8
    assert clip_at(4, 0) != clips[0]


def test_tempos_can_be_told_apart() -> None:
    assert all(faster / slower > 1.1 for slower, faster in pairwise(TEMPOS))


@pytest.mark.parametrize(
    ("name", "choices"),
    [("lead", list(INSTRUMENTS)), ("style", list(STYLES)), ("tempo", TEMPOS), ("mode", list(KEYS))],
)
def test_all_are_drawn_as_often(name: str, choices: list[object]) -> None:
    counts = Counter(getattr(clip, name) for clip in DRAWN)
    assert set(counts) == set(choices)
    mean = len(DRAWN) / len(choices)
    for count in counts.values():
        assert abs(count - mean) < 4.5 * np.sqrt(mean)


def test_keys_have_few_accidentals() -> None:
    assert {clip.key for clip in DRAWN} == {"C major", "F major", "G major", "A minor", "D minor", "E minor"}


def test_half_of_the_clips_have_one_instrument() -> None:
    single = [clip for clip in DRAWN if len(clip.instruments) == 1]
    assert 0.47 < len(single) / len(DRAWN) < 0.58
    assert 0.22 < sum(clip.is_solo for clip in DRAWN) / len(DRAWN) < 0.34
    assert 0.5 < sum(clip.has_drums for clip in DRAWN) / len(DRAWN) < 0.66


def test_nobody_plays_twice() -> None:
    for clip in DRAWN:
        assert len(set(clip.instruments)) == len(clip.instruments)
        assert not (clip.bass and clip.lead in BASSES)


def test_held_out_pairs_are_never_in_the_stream() -> None:
    pairs = {(lead, style) for lead in INSTRUMENTS for style in STYLES if is_held_out(lead, style)}
    assert 0.04 < len(pairs) / len(INSTRUMENTS) / len(STYLES) < 0.12
    assert {style for _, style in pairs} == set(STYLES)
    stream = [clip_at(0, index) for index in range(200)]
    assert not any((name, clip.style) in pairs for clip in stream for name in clip.instruments)
    others = {(clip.lead, clip.style) for clip in (clip_at(0, index, held_out=True) for index in range(40))}
    assert others <= pairs
    assert len(others) > len(pairs) / 2


def test_a_clip_says_what_it_is() -> None:
    clip = MusicClip("waltz", 84, 9, "minor", "oboe", chords="piano")
    assert clip.key == "A minor"
    assert clip.instruments == ("oboe", "piano")
    assert not clip.is_solo
    assert clip.beats == 24
