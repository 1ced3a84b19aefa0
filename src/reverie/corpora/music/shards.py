"""Composed music on disk: webdataset shards of a sound file, its caption, and what plays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverie.corpora.music.captions import chinese, clip_caption, english
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.fluidsynth import default_font
from reverie.corpora.music.score import MusicClip
from reverie.corpora.music.synth import RATE, SECONDS, render
from reverie.corpora.shards import Corpus, write_corpus
from reverie.progress import Progress

SUFFIX = "flac"
Encode = Callable[[NDArray[np.float32], int], bytes]
"""Make a FLAC file of samples (2, n) at a rate: codecs stand to the right of this room."""


def write(folder: Path, encode: Encode, *, count: int, seed: int, font: Path | None = None) -> Iterator[Progress]:
    """Write clips 0 to `count` of the stream `seed` into a folder, as `write_corpus` does, yielding how far it is.

    Raises ReverieError where a folder holds other shards, such as of another sound font, or nothing can be played.
    """
    font = font or default_font()
    identity = {"music": font.name, "sample_rate": RATE, "seconds": SECONDS}
    yield from write_corpus(folder, Corpus(seed, identity, partial(_members, encode, seed, font)), count)


def _members(encode: Encode, seed: int, font: Path, key: str, index: int) -> Iterator[tuple[str, bytes]]:
    clip, caption = clip_at(seed, index), clip_caption(seed, index)
    rng = np.random.default_rng((seed, index, 5))
    record = {
        "key": key,
        "caption": caption,
        "caption_en": english(clip, rng),
        "caption_zh": chinese(clip, rng),
        **_description(clip),
    }
    yield SUFFIX, encode(render(clip, font=font), RATE)
    yield "txt", caption.encode()
    yield "json", json.dumps(record, ensure_ascii=False).encode()


def _description(clip: MusicClip) -> dict[str, Any]:
    """Say what plays; "key" is taken by the sample's own."""
    return {
        "style": clip.style,
        "tempo": clip.tempo,
        "tonality": clip.key,
        "mode": clip.mode,
        "metre": clip.manner.metre,
        "lead": clip.lead,
        "chords": clip.chords,
        "bass": clip.bass,
        "instruments": clip.instruments,
        "drums": clip.has_drums,
        "sample_rate": RATE,
        "seconds": SECONDS,
    }
