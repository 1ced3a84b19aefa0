"""Training examples: numbered pictures with captions, of emoji scenes or a collection. `sounds` has others.

All is a pure function of the number. `identity` says what the pictures depend on, so that what was computed of them
can be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reverie.corpora.captions import BARE, caption, telling
from reverie.corpora.concepts import Concept
from reverie.corpora.drawings import drawing
from reverie.corpora.scenes import ANYWHERE, PAIR_SHARE, SIZE_WORDS, Scene, glyph, render, scene_at
from reverie.data.captioned import Captioned
from reverie.train.pairs import crop_box

HELD_OUT_SEED = 10_000  # of scenes and music that no training seed draws
Identity = list[object]  # plain values, for JSON
Size = tuple[int, int]
MicroConditioning = tuple[Size, Size, Size]
"""Original size, crop and target size in pixels: (width, height), (left, top), (width, height)."""


class Examples(Protocol):
    """A finite row of pictures of one size, each with captions."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> Identity:
        """Return what the pictures depend on, in plain values."""

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return a picture."""

    def caption(self, index: int, turn: int) -> str:
        """Return its caption, which every turn may tell anew."""

    @property
    def tellings(self) -> int:
        """Return after how many turns captions repeat; 0 where they never do."""


@dataclass(frozen=True)
class Scenes:
    """Serve `count` emoji scenes. See `corpora.scenes.draw_scene` for how they are mixed."""

    things: tuple[Concept, ...]
    seed: int
    count: int
    pair_share: float = PAIR_SHARE
    scatter: int = ANYWHERE
    sizes: Sequence[str] = SIZE_WORDS
    bare: int = BARE
    default_share: float = 0.0
    tint_share: float = 0.0
    scale: int = 1  # pixels of a picture, in times of CANVAS; vector drawings where it is more than 1

    def __len__(self) -> int:
        return self.count

    @property
    def identity(self) -> Identity:
        """Return what the scenes depend on."""
        names = [thing.emoji for thing in self.things]
        drawn = [self.pair_share, self.scatter, list(self.sizes), self.default_share, self.tint_share, self.scale]
        return ["scenes", names, self.seed, self.count, *drawn]

    def scene(self, index: int) -> Scene:
        """Return a scene."""
        return scene_at(
            self.things,
            self.seed,
            index,
            pair_share=self.pair_share,
            scatter=self.scatter,
            sizes=self.sizes,
            default_share=self.default_share,
            tint_share=self.tint_share,
        )

    def picture(self, index: int) -> UInt8[np.ndarray, "side side 3"]:
        """Draw a scene."""
        return render(self.scene(index), self.scale, drawing if self.scale > 1 else glyph)

    def caption(self, index: int, turn: int) -> str:
        """Tell a scene in English or Chinese."""
        return caption(self.scene(index), telling(self.seed, index, turn), bare=self.bare)

    @property
    def tellings(self) -> int:
        """Return 0: every turn tells a scene anew."""
        return 0


@dataclass(frozen=True)
class Pictures:
    """Serve a collection of pictures, of each the largest square in the middle, resized to `size` pixels."""

    found: Captioned
    size: int

    def __len__(self) -> int:
        return len(self.found)

    @property
    def identity(self) -> Identity:
        """Return which files there are, and when they were last changed."""
        return ["pictures", self.size, *self.found.identity]

    def picture(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        """Read a picture. Raises ReverieError, naming it, where it is damaged."""
        picture = self.found.picture(index)
        box = crop_box(picture.size, 1, np.random.default_rng(0))
        return np.array(picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box))

    def caption(self, index: int, turn: int) -> str:
        """Return its one caption."""
        return self.found.caption(index)

    @property
    def tellings(self) -> int:
        """Return 1: captions stay as they are."""
        return 1

    def sizes(self, index: int) -> MicroConditioning:
        """Return what SDXL is told of a picture: crop and target in pixels of the resized one (2307.01952, 2.2)."""
        size = self.found.size(index)
        left, top, right, _ = crop_box(size, 1, np.random.default_rng(0))
        scale = self.size / (right - left)
        return size, (round(left * scale), round(top * scale)), (self.size, self.size)
