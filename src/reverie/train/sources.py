"""Sources of fine-tuning examples: pictures, sounds or composed music, as a recipe names them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from pydantic import NonNegativeInt

from reverie.data.captioned import open_captioned
from reverie.data.sounds import open_sounds
from reverie.errors import ReverieError
from reverie.media.sound import duration, read
from reverie.sound.spectrogram import SpectrogramParams
from reverie.train.examples import HELD_OUT_SEED, Examples, Pictures
from reverie.train.sounds import ComposedMusic, Sounds

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
            return Pictures(open_captioned(self.pictures, self.caption), size)
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
        picture = self.picture(int(rng.integers(self.count)))
        y, x = (int(rng.integers(side - self.size + 1)) for side in picture.shape[:2])
        return np.ascontiguousarray(picture[y : y + self.size, x : x + self.size].transpose(2, 0, 1))
