"""A clip of music: its style, tempo, key and instruments, and the notes of its parts; and their harmony.

Scales, chords in Roman numerals, and the way from chord to chord.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reverie.corpora.music.styles import STYLES, Style

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


LEAD, CHORDS, BASS, DRUMS = PARTS = ("lead", "chords", "bass", "drums")
BARS = 8  # a clip is composed of, after which it goes round


@dataclass(frozen=True)
class ScoreNote:
    """Play a MIDI pitch in a part; start and length in beats, velocity 1 to 127. Of drums the pitch is the drum."""

    part: str
    start: float
    length: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class MusicClip:
    """Describe a clip; instruments and style by their names, "" where nothing plays a part.

    `tempo` is in beats a minute; `tonic` is a pitch class, `mode` "major" or "minor". The first note starts at beat 0.
    """

    style: str
    tempo: int
    tonic: int
    mode: str
    lead: str
    chords: str = ""
    bass: str = ""
    has_drums: bool = False
    notes: tuple[ScoreNote, ...] = ()

    @property
    def key(self) -> str:
        """Name its key, such as "A minor"."""
        return f"{NOTES[self.tonic]} {self.mode}"

    @property
    def instruments(self) -> tuple[str, ...]:
        """Return what plays, the lead first; drums are no instrument here."""
        return tuple(filter(None, (self.lead, self.chords, self.bass)))

    @property
    def is_solo(self) -> bool:
        """Tell whether one instrument plays alone, without drums."""
        return len(self.instruments) == 1 and not self.has_drums

    @property
    def manner(self) -> Style:
        """Return its style's description."""
        return STYLES[self.style]

    @property
    def beats(self) -> int:
        """Return after how many beats it goes round."""
        return BARS * self.manner.metre
