"""Harmony: scales, chords in Roman numerals, and the way from chord to chord.

Pitches are MIDI's, 60 is middle C; pitch classes count semitones above C, 0 to 11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
OCTAVE = 12
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # semitones above the tonic
DEGREES = ("I", "II", "III", "IV", "V", "VI", "VII")  # of the major scale; a flat lowers one
NUMERAL = re.compile(r"(b?)(iii|ii|iv|i|vii|vi|v|III|II|IV|I|VII|VI|V)(maj7|ø7|7|)")
FIFTH, TRITONE = 7, 6


@dataclass(frozen=True)
class Chord:
    """Hold a chord: the pitch class of its root, and the semitones of its tones above the root, which is the first."""

    root: int
    intervals: tuple[int, ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """Return the pitch classes of its tones, root first."""
        return tuple((self.root + interval) % OCTAVE for interval in self.intervals)


def chord(numeral: str, tonic: int) -> Chord:
    """Read a Roman numeral over the pitch class of a tonic: "I", "vi", "V7", "iiø7", "bVII", "Imaj7".

    Small letters are minor; "7" adds the minor seventh, "maj7" the major one, "ø7" flattens the fifth as well. Degrees
    are the major scale's, in minor too, where the sixth is "bVI".
    """
    match = NUMERAL.fullmatch(numeral)
    if match is None:
        raise ValueError(f"{numeral!r} is no chord")
    flat, degree, seventh = match.groups()
    root = SCALES["major"][DEGREES.index(degree.upper())] - len(flat)
    third = 3 if degree.islower() else 4
    triad = (0, third, TRITONE if seventh == "ø7" else FIFTH)
    tones = {"": triad, "maj7": (*triad, 11)}.get(seventh, (*triad, 10))
    return Chord((tonic + root) % OCTAVE, tones)


def consonant(played: Chord, tonic: int, mode: str) -> frozenset[int]:
    """Return the pitch classes that a melody may pass through: the chord's, and the scale's that rub against none.

    A tone rubs where it lies a semitone from one of the chord's, as F does over C major.
    """
    scale = {(tonic + step) % OCTAVE for step in SCALES[mode]}
    beside = {(tone + side) % OCTAVE for tone in played.classes for side in (-1, 1)}
    return frozenset(scale - beside) | frozenset(played.classes)


def within(classes: frozenset[int] | tuple[int, ...], low: int, high: int) -> list[int]:
    """Return the pitches from `low` to `high`, both included, that are of the classes, rising."""
    return [pitch for pitch in range(low, high + 1) if pitch % OCTAVE in classes]


def voice(played: Chord, before: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """Lay out a chord in close position between two pitches, moving as little as possible from the three voices before.

    Three voices, rising: of a seventh chord the fifth is left out. The range must hold an octave and a half.
    """
    kept = played.classes if len(played.classes) == 3 else (*played.classes[:2], played.classes[3])
    tones = within(kept, low, high)
    choices = [(tones[start], tones[start + 1], tones[start + 2]) for start in range(len(tones) - 2)]
    return min(choices, key=lambda voices: sum(abs(now - then) for now, then in zip(voices, before, strict=True)))
