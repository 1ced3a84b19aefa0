"""Does what is composed obey the textbook: chord tones on the beats, registers, a pulse, no note struck twice?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.compose import compose
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.score import BASS, CHORDS, DRUMS, LEAD, SCALES, MusicClip, ScoreNote

# The chords of four bars, by hand, in C major and A minor: any of them may have been chosen.
BY_HAND = {
    ("ballad", "major"): ["CEG GBD ACE FAC", "CEG ACE FAC GBD"],
    ("ballad", "minor"): ["ACE FAC CEG GBD", "ACE DFA FAC E#BD"],  # "#" stands for G sharp
    ("waltz", "major"): ["CEG GBDF GBDF CEG", "CEG FAC GBDF CEG"],
    ("jazz", "major"): ["CEGB ACEG DFAC GBDF", "CEGB DFAC GBDF CEGB"],
    ("jazz", "minor"): ["ACEG BDFA E#BD ACEG", "ACEG DFAC E#BD ACEG"],
    ("blues", "minor"): ["ACEG ACEG DFAC ACEG", "ACEG DFAC ACEG E#BD"],
}
CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "#": 8, "A": 9, "B": 11}
CLIPS = [clip_at(21, index) for index in range(80)]


def of_part(clip: MusicClip, part: str) -> list[ScoreNote]:
    return [note for note in clip.notes if note.part == part]


@pytest.mark.parametrize(("style", "mode"), BY_HAND)
@pytest.mark.parametrize("seed", range(4))
def test_chords_bass_and_strong_beats_are_of_the_harmony(style: str, mode: str, seed: int) -> None:
    tonic = CLASSES["C" if mode == "major" else "A"]
    plan = MusicClip(style, 96, tonic, mode, "flute", chords="piano", bass="bass", has_drums=True)
    clip = compose(plan, np.random.default_rng(seed))
    sounding: list[set[int]] = [set() for _ in range(8)]
    for note in clip.notes:
        if note.part in (CHORDS, BASS) or (note.part == LEAD and note.start.is_integer()):
            sounding[int(note.start // clip.manner.metre)].add(note.pitch % 12)
    expected = [[{CLASSES[letter] for letter in bar} for bar in line.split()] for line in BY_HAND[style, mode]]
    assert any(all(tones <= bars[bar % 4] for bar, tones in enumerate(sounding)) for bars in expected)


def test_between_the_beats_nothing_rubs() -> None:
    """In the first bar, which is the tonic's: of C major neither F nor B passes."""
    for seed in range(20):
        clip = compose(MusicClip("waltz", 96, 0, "major", "flute"), np.random.default_rng(seed))
        first = {note.pitch % 12 for note in clip.notes if note.start < 3}
        assert first <= {CLASSES[letter] for letter in "CDEGA"}


def test_notes_are_of_the_scale_but_for_leading_notes_and_blues() -> None:
    """Styles whose harmonies are the scale's alone; the dominant of minor sharpens the seventh."""
    for seed in range(10):
        for mode, tonic in (("major", 7), ("minor", 2)):
            clip = compose(MusicClip("waltz", 96, tonic, mode, "oboe", chords="piano"), np.random.default_rng(seed))
            scale = {(tonic + step) % 12 for step in SCALES[mode]} | {(tonic + 11) % 12}
            assert {note.pitch % 12 for note in clip.notes} <= scale


@pytest.mark.parametrize("clip", CLIPS, ids=range(len(CLIPS)))
def test_clips_can_be_played(clip: MusicClip) -> None:
    lead, instrument = of_part(clip, LEAD), INSTRUMENTS[clip.lead]
    assert all(instrument.low <= note.pitch <= instrument.high for note in lead)
    assert {float(beat) for beat in range(clip.beats)} <= {note.start for note in lead}  # from 0 on, the pulse
    assert {note.part for note in clip.notes} == {
        LEAD,
        *[CHORDS] * bool(clip.chords),
        *[BASS] * bool(clip.bass),
        *[DRUMS] * clip.has_drums,
    }
    for note in clip.notes:
        assert 0 <= note.start < clip.beats
        assert note.length > 0
        assert 1 <= note.velocity <= 127
    assert [note.start for note in clip.notes] == sorted(note.start for note in clip.notes)
    struck = sorted((note.part, note.pitch, note.start, note.length) for note in clip.notes)
    for (*before, start, length), (*after, next_start, _) in pairwise(struck):
        assert before != after or start + length <= next_start + 1e-9


def test_beats_are_louder_than_what_lies_between() -> None:
    for clip in CLIPS:
        lead = of_part(clip, LEAD)
        on = np.mean([note.velocity for note in lead if note.start.is_integer()])
        between = [note.velocity for note in lead if not note.start.is_integer()]
        assert not between or on > np.mean(between) + 10


def test_composing_is_pure() -> None:
    plan = MusicClip("funk", 112, 0, "major", "saxophone", bass="slap bass")
    assert compose(plan, np.random.default_rng(3)) == compose(plan, np.random.default_rng(3))
    assert compose(plan, np.random.default_rng(3)) != compose(plan, np.random.default_rng(4))
