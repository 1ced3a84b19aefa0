"""Are chords spelled as in a textbook, and do voices move little between them?"""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from reverie.corpora.music.score import SCALES, chord, consonant, voice, within
from reverie.corpora.music.styles import STYLES

C, D, E, F, G, A, B = 0, 2, 4, 5, 7, 9, 11
FLAT, SHARP = -1, 1


@pytest.mark.parametrize(
    ("numeral", "tonic", "spelled"),
    [
        ("I", C, [C, E, G]),
        ("ii7", C, [D, F, A, C]),
        ("II7", C, [D, F + SHARP, A, C]),
        ("V7", C, [G, B, D, F]),
        ("Imaj7", F, [F, A, C, E]),
        ("bVII", G, [F, A, C]),
        ("i7", A, [A, C, E, G]),
        ("iiø7", A, [B, D, F, A]),
        ("V7", A, [E, G + SHARP, B, D]),  # the harmonic minor's leading note
        ("bVI", E, [C, E, G]),
        ("bIII", D, [F, A, C]),
        ("iv", D, [G, B + FLAT, D]),
    ],
)
def test_chords_are_spelled(numeral: str, tonic: int, spelled: list[int]) -> None:
    assert list(chord(numeral, tonic).classes) == spelled


def test_what_is_no_chord() -> None:
    with pytest.raises(ValueError, match="'VIII' is no chord"):
        chord("VIII", C)


def test_melodies_avoid_what_rubs() -> None:
    assert consonant(chord("I", C), C, "major") == {C, D, E, G, A}  # neither F nor B
    assert consonant(chord("ii7", C), C, "major") == {D, F, A, C, G}
    assert consonant(chord("i", A), A, "minor") == {A, C, E, D, G}


def progressions() -> list[tuple[str, str, int]]:
    """Give every progression of every style with its mode and some tonic."""
    found = []
    for style in STYLES.values():
        found += [("major", numerals, G) for numerals in style.major]
        found += [("minor", numerals, D) for numerals in style.minor]
    return found


@pytest.mark.parametrize(("mode", "numerals", "tonic"), progressions())
def test_every_progression_starts_at_home_and_moves_smoothly(mode: str, numerals: str, tonic: int) -> None:
    chords = [chord(numeral, tonic) for numeral in numerals.split()]
    assert chords[0].root == tonic
    assert chords[0].intervals[1] == {"major": 4, "minor": 3}[mode]
    assert set(chords[0].classes) - {(tonic + 10) % 12} <= {
        (tonic + step) % 12 for step in SCALES[mode]
    }  # but blue 7ths
    voices = [(61, 61, 61)]
    for played in chords * 2:
        voices.append(voice(played, voices[-1], 52, 71))
        assert {pitch % 12 for pitch in voices[-1]} <= set(played.classes)
        assert {played.root, (played.root + played.intervals[1]) % 12} <= {pitch % 12 for pitch in voices[-1]}
        assert 52 <= voices[-1][0] < voices[-1][1] < voices[-1][2] <= 71
    for before, after in pairwise(voices[1:]):
        assert sum(abs(now - then) for now, then in zip(after, before, strict=True)) <= 9  # a minor third each


def test_voices_move_as_little_as_possible() -> None:
    """Against all ways to take three tones in close position."""
    played, before = chord("IV", C), (60, 64, 67)
    tones = [pitch for pitch in range(52, 72) if pitch % 12 in (F, A, C)]
    close = [three for three in combinations(tones, 3) if three[2] - three[0] < 12]
    least = min(sum(abs(a - b) for a, b in zip(three, before, strict=True)) for three in close)
    chosen = voice(played, before, 52, 71)
    assert chosen == (60, 65, 69)
    assert sum(abs(a - b) for a, b in zip(chosen, before, strict=True)) == least


def test_pitches_of_classes() -> None:
    assert within((C, E), 59, 76) == [60, 64, 72, 76]
