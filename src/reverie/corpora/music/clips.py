"""Music clip n: style, tempo, key and instruments, chosen and composed as a pure function of (seed, index).

Few keys are used, those without accidentals but for what chords bring: a small model needs to learn fewer pitches.
"""

from __future__ import annotations

import zlib

import numpy as np

from reverie.corpora.music.compose import compose
from reverie.corpora.music.instruments import BASSES, INSTRUMENTS
from reverie.corpora.music.score import MusicClip
from reverie.corpora.music.styles import STYLES

TEMPOS = (72, 84, 96, 112, 128, 144)  # beats a minute; neighbours differ by more than 10 %
KEYS = {"major": (0, 5, 7), "minor": (9, 2, 4)}  # C, F, G; A, D, E
HELD_OUT = 12  # one in so many pairs of lead and style is kept from training
# Which parts play beside the lead, and how often: half of the clips are of one instrument, with drums or without.
ARRANGEMENTS = (
    ("", 0.28),
    ("drums", 0.24),
    ("bass drums", 0.14),
    ("bass", 0.06),
    ("chords", 0.08),
    ("chords drums", 0.06),
    ("chords bass drums", 0.14),
)


def is_held_out(instrument: str, style: str) -> bool:
    """Tell whether an instrument is kept from training in a style, by a fixed hash; what usually accompanies is not."""
    usual = STYLES[style].comping + STYLES[style].basses
    return instrument not in usual and zlib.crc32(f"{style} {instrument}".encode()) % HELD_OUT == 0


def draw_clip(rng: np.random.Generator) -> MusicClip:
    """Choose what a clip is, without its notes: every instrument leads as often, in every style and tempo."""
    style = STYLES[_one_of(tuple(STYLES), rng)]
    mode = _one_of(tuple(KEYS), rng)
    lead = _one_of(tuple(INSTRUMENTS), rng)
    names, shares = zip(*ARRANGEMENTS, strict=True)
    beside = names[rng.choice(len(names), p=shares)].split()
    chords = _one_of([name for name in style.comping if name != lead], rng)
    bass = _one_of([name for name in style.basses if name != lead], rng)
    return MusicClip(
        style=style.name,
        tempo=TEMPOS[rng.integers(len(TEMPOS))],
        tonic=KEYS[mode][rng.integers(len(KEYS[mode]))],
        mode=mode,
        lead=lead,
        chords=chords if "chords" in beside else "",
        bass=bass if "bass" in beside and lead not in BASSES else "",
        has_drums="drums" in beside,
    )


def clip_at(seed: int, index: int, *, held_out: bool = False) -> MusicClip:
    """Return clip `index` of the stream `seed`: led by an instrument that is held out in its style if `held_out`."""
    rng = np.random.default_rng((seed, index))
    while True:
        clip = draw_clip(rng)
        if is_held_out(clip.lead, clip.style) == held_out:
            return compose(clip, rng)


def _one_of(names: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return names[rng.integers(len(names))]
