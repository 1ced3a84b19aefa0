"""Composition by rule: chords by degrees, then bass, drums, accompaniment and a melody over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from reverie.corpora.music.instruments import BASSES, INSTRUMENTS
from reverie.corpora.music.score import (
    BARS,
    BASS,
    CHORDS,
    DRUMS,
    LEAD,
    OCTAVE,
    Chord,
    MusicClip,
    ScoreNote,
    chord,
    consonant,
    voice,
    within,
)
from reverie.corpora.music.styles import DrumHit, hits

LOUD, SOFT, DOWNBEAT = 108, 84, 8  # velocities; the first beat of a bar is so much louder
ARTICULATION = 0.8  # of its length a note sounds, so that the next one is heard to start
COMPING = (52, 71)  # the pitches that chords are laid out between
NEAREST = 3  # chord tones that a melody chooses among
STEP = 4  # semitones that it passes at most between the beats
BASS_LOW = 33  # an open string of a bass, 55 Hz: the root of a chord is the first one from here


def compose(clip: MusicClip, rng: np.random.Generator) -> MusicClip:
    """Write the notes of a clip's parts: the same for the same random numbers."""
    style = clip.manner
    progressions = style.major if clip.mode == "major" else style.minor
    numerals = progressions[rng.integers(len(progressions))].split()
    played = [chord(numerals[bar % len(numerals)], clip.tonic) for bar in range(BARS)]
    notes = list(_lead(clip, played, rng))
    if clip.chords:
        notes += _comping(clip, played)
    if clip.bass:
        notes += _bass_line(clip, BASS, played, rng)
    if clip.has_drums:
        notes += _drums(clip)
    return replace(clip, notes=tuple(sorted(notes, key=lambda note: (note.start, note.part, note.pitch))))


def _lead(clip: MusicClip, played: Sequence[Chord], rng: np.random.Generator) -> Iterator[ScoreNote]:
    return _bass_line(clip, LEAD, played, rng) if clip.lead in BASSES else _melody(clip, played, rng)


def _bar_of(clip: MusicClip, pattern: str, bar: int) -> Iterator[tuple[DrumHit, float, int]]:
    """Read a pattern in its place: each hit, its start in the clip in beats, and its velocity."""
    style = clip.manner
    for hit in hits(pattern, style.metre, style.feel):
        loud = hit.sign == "X" or (hit.sign.isdigit() and hit.start.is_integer())
        accent = DOWNBEAT if hit.start == 0 else 0
        yield hit, bar * style.metre + hit.start, (LOUD if loud else SOFT) + accent


def _melody(clip: MusicClip, played: Sequence[Chord], rng: np.random.Generator) -> Iterator[ScoreNote]:
    """Walk through the register: on the beats over tones of the chord, between them over what rubs against none."""
    lead, motifs = INSTRUMENTS[clip.lead], clip.manner.melody
    first = int(rng.integers(len(motifs)))
    now = int(rng.integers(lead.low + STEP, lead.high - STEP + 1))
    for bar, harmony in enumerate(played):
        tones = within(harmony.classes, lead.low, lead.high)
        passing = within(consonant(harmony, clip.tonic, clip.mode), lead.low, lead.high)
        motif = motifs[(first + (bar % 4 == 2)) % len(motifs)]  # a a b a
        for hit, start, velocity in _bar_of(clip, motif, bar):
            on_beat = hit.start.is_integer()
            near = [pitch for pitch in passing if abs(pitch - now) <= STEP]
            now = _other(tones if on_beat or not near else near, now, rng)
            yield ScoreNote(LEAD, start, hit.length * ARTICULATION, now, velocity)


def _other(pitches: Sequence[int], now: int, rng: np.random.Generator) -> int:
    """Choose one of the pitches nearest to the present one, but not itself."""
    nearest = sorted((pitch for pitch in pitches if pitch != now), key=lambda pitch: abs(pitch - now))[:NEAREST]
    return nearest[rng.integers(len(nearest))] if nearest else now


def _comping(clip: MusicClip, played: Sequence[Chord]) -> Iterator[ScoreNote]:
    low, high = COMPING
    voices: tuple[int, ...] = ((low + high) // 2,) * 3
    for bar, harmony in enumerate(played):
        voices = voice(harmony, voices, low, high)
        for hit, start, velocity in _bar_of(clip, clip.manner.chords, bar):
            for pitch in voices:
                yield ScoreNote(CHORDS, start, hit.length * ARTICULATION, pitch, velocity)


def _bass_line(clip: MusicClip, part: str, played: Sequence[Chord], rng: np.random.Generator) -> Iterator[ScoreNote]:
    patterns = clip.manner.bass
    first = int(rng.integers(len(patterns)))
    for bar, harmony in enumerate(played):
        root = BASS_LOW + (harmony.root - BASS_LOW) % OCTAVE
        tones = {"1": root, "3": root + harmony.intervals[1], "5": root + harmony.intervals[2], "8": root + OCTAVE}
        for hit, start, velocity in _bar_of(clip, patterns[(first + bar) % len(patterns)], bar):
            yield ScoreNote(part, start, hit.length * ARTICULATION, tones[hit.sign], velocity)


def _drums(clip: MusicClip) -> Iterator[ScoreNote]:
    for bar in range(BARS):
        for drum, pattern in clip.manner.drums.items():
            for hit, start, velocity in _bar_of(clip, pattern, bar):
                yield ScoreNote(DRUMS, start, hit.length, drum, velocity)
