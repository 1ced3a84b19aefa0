"""Sources of fine-tuning examples: pictures, sounds or composed music, as a recipe names them.

A sound is seen as the picture of its spectrogram.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from pydantic import NonNegativeInt

from reverie.codecs.spectrograms import hear, to_picture
from reverie.corpora.captions import telling
from reverie.corpora.music.captions import caption
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.fluidsynth import default_font
from reverie.corpora.music.synth import render
from reverie.data.captioned import open_captioned
from reverie.data.sounds import CaptionedSounds, open_sounds
from reverie.errors import ReverieError
from reverie.media.sound import Sound, duration, read
from reverie.sound.spectrogram import SpectrogramParams
from reverie.train.examples import HELD_OUT_SEED, Examples, Identity, Pictures
from reverie.train.pairs import first_readable

SAMPLED = 20  # clips whose notes tell whether music is still composed as before


@dataclass(frozen=True)
class ComposedMusic:
    """Serve `count` clips of composed music, as pictures of their spectrograms."""

    seed: int
    count: int
    params: SpectrogramParams

    def __len__(self) -> int:
        return self.count

    @property
    def identity(self) -> Identity:
        """Return what the spectrograms depend on: also how music is composed, by a sample, and on what it is played."""
        digest = hashlib.sha256(self.picture(0).tobytes())
        for index in range(min(SAMPLED, self.count)):
            digest.update(repr(clip_at(self.seed, index)).encode())
        return ["music", default_font().name, self.seed, self.count, asdict(self.params), digest.hexdigest()]

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Compose, play and draw a clip."""
        samples = render(clip_at(self.seed, index), self.params.sample_rate, self.params.seconds)
        return draw_spectrogram(Sound(torch.from_numpy(samples), self.params.sample_rate), self.params)

    def caption(self, index: int, turn: int) -> str:
        """Tell a clip in English or Chinese."""
        return caption(clip_at(self.seed, index), telling(self.seed, index, turn))

    @property
    def tellings(self) -> int:
        """Return 0: every turn tells a clip anew."""
        return 0


@dataclass(frozen=True)
class Sounds:
    """Serve the clips of a collection of sounds, as pictures of their spectrograms."""

    found: CaptionedSounds[Sound]
    params: SpectrogramParams

    def __len__(self) -> int:
        return len(self.found)

    @property
    def identity(self) -> Identity:
        """Return which files there are, and what the spectrograms depend on."""
        return ["sounds", asdict(self.params), *self.found.identity]

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read and draw a clip. Raises ReverieError, naming it, where it is damaged."""
        return draw_spectrogram(self.found.sound(index), self.params)

    def caption(self, index: int, turn: int) -> str:
        """Return its one caption."""
        return self.found.caption(index)

    @property
    def tellings(self) -> int:
        """Return 1: captions stay as they are."""
        return 1


def draw_spectrogram(sound: Sound, params: SpectrogramParams) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the spectrogram of a clip, as wide as `params` say: cut, or filled up with silence."""
    mel = hear(sound, params)
    return np.array(to_picture(F.pad(mel, (0, params.columns - mel.shape[-1])), params))


KEPT = 1000  # pictures in memory that crops are cut from
HELD_OUT = 128


@dataclass(frozen=True, kw_only=True)
class ExampleSource:
    """Name where examples come from: one of `pictures`, `sounds` and `music`."""

    pictures: str = ""  # folder of pictures with captions, or of webdataset shards
    sounds: str = ""  # folder of sounds with captions, or of webdataset shards
    music: NonNegativeInt = 0  # how many clips are composed
    caption: str = ""  # of pictures and sounds that have none of their own

    @property
    def named(self) -> list[str]:
        """Return which of the three are given."""
        return [name for name in ("pictures", "sounds", "music") if getattr(self, name)]

    def open(self, seed: int, size: int, params: SpectrogramParams) -> Examples:
        """Open the examples; pictures get `size` pixels, sounds are seen by `params`. Raises ReverieError."""
        if len(self.named) != 1:
            names = " and ".join(self.named) or "none of them"
            raise ReverieError(f"the recipe's [data] names {names}; give one of pictures, sounds and music")
        if self.pictures:
            found = open_captioned(self.pictures, self.caption)
            return Pictures(found, (size, size), range(len(found)))
        if self.sounds:
            return Sounds(open_sounds(self.sounds, params.seconds, duration, read, self.caption), params)
        return ComposedMusic(seed, self.music, params)

    def open_held_out(self, size: int, params: SpectrogramParams) -> Examples:
        """Open examples that are not learned from; a collection, which has no others, gives its own."""
        return ComposedMusic(HELD_OUT_SEED, HELD_OUT, params) if self.music else self.open(0, size, params)


class Crops:
    """Cut squares of `size` pixels at random from the pictures of examples: crop n is a function of n alone."""

    def __init__(self, examples: Examples, seed: int, size: int) -> None:
        self.picture, self.count = lru_cache(KEPT)(examples.picture), len(examples)
        self.seed, self.size = seed, size

    def __call__(self, index: int) -> UInt8[np.ndarray, "3 size size"]:
        """Return crop `index`."""
        rng = np.random.default_rng((self.seed, index, 1))
        picture = first_readable(self.picture, int(rng.integers(self.count)), self.count)[1]
        y, x = (int(rng.integers(side - self.size + 1)) for side in picture.shape[:2])
        return np.ascontiguousarray(picture[y : y + self.size, x : x + self.size].transpose(2, 0, 1))
