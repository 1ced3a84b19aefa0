"""A clip of music: its style, tempo, key and instruments, and the notes of its parts."""

from __future__ import annotations

from dataclasses import dataclass

from reverie.corpora.music.styles import STYLES, Style
from reverie.corpora.music.theory import NOTES

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
