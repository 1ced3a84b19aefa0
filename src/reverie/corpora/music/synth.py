"""Synthesis of a clip: its parts played by a sound font, mixed at set levels and brought to one loudness."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reverie.corpora.music.fluidsynth import InstrumentPart, Key, default_font, play
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.score import BASS, CHORDS, DRUMS, LEAD, PARTS, MusicClip
from reverie.errors import ReverieError

RATE, SECONDS = 16_000, 5.12  # what the bundled model hears (sound/spectrogram.py: SMALL)
OVERSAMPLING = 2  # so that nothing of a sound font's 44.1 kHz folds into what is kept
# Mean powers against the lead's, in dB: who leads is heard. Pans are MIDI's: chords a little left, bass in the middle.
LEVELS = {LEAD: 0.0, CHORDS: -9.0, BASS: -6.0, DRUMS: -6.0}
PANS = {LEAD: 68, CHORDS: 44, BASS: 64, DRUMS: 64}
PEAK = -1.0  # dBFS


def render(
    clip: MusicClip, rate: int = RATE, seconds: float = SECONDS, font: Path | None = None
) -> NDArray[np.float32]:
    """Play a clip, over and over where it is shorter: float32 (2, round(seconds * rate)), its peak at -1 dBFS.

    The same clip, rate, length and font give the same bits on one machine, whatever was played before. `font` is a .sf2
    file; the first of fluidsynth.FONTS that is installed if not given. Raises ReverieError where it cannot be played.
    """
    playing = [part for part in PARTS if any(note.part == part for note in clip.notes)]
    fine = rate * OVERSAMPLING
    length = round(seconds * rate)
    parts = [_part(clip, name, fine, seconds) for name in playing]
    apart = play(font or default_font(), fine, length * OVERSAMPLING, parts)
    loudness = np.sqrt(np.square(apart).mean((1, 2)))
    gains = [10 ** (LEVELS[name] / 20) / max(level, 1e-6) for name, level in zip(playing, loudness, strict=True)]
    mixed = _decimate(np.tensordot(np.array(gains, np.float32), apart, 1), rate)
    return mixed * np.float32(10 ** (PEAK / 20) / np.abs(mixed).max())


def _part(clip: MusicClip, name: str, rate: int, seconds: float) -> InstrumentPart:
    """Lay out the notes of a part in samples."""
    beat = 60 / clip.tempo  # seconds
    rounds = ceil(seconds / (clip.beats * beat))
    keys = [
        Key(round(start * beat * rate), round((start + note.length) * beat * rate), note.pitch, note.velocity)
        for turn in range(rounds)
        for note in clip.notes
        if note.part == name and (start := note.start + turn * clip.beats) * beat < seconds
    ]
    if name == DRUMS:
        return InstrumentPart(clip.manner.kit, tuple(keys), is_kit=True, pan=PANS[name])
    instrument = {LEAD: clip.lead, CHORDS: clip.chords, BASS: clip.bass}[name]
    return InstrumentPart(INSTRUMENTS[instrument].program, tuple(keys), pan=PANS[name])


def _decimate(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Bring (2, n) samples down to a rate, band-limited."""
    try:
        import soxr
    except ImportError as error:
        raise ReverieError("playing music needs soxr; pip install 'reverie[sound]'") from error
    return np.ascontiguousarray(soxr.resample(samples.T, rate * OVERSAMPLING, rate, quality="HQ").T)
