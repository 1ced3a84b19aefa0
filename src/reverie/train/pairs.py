"""Pairs of picture and caption that CLIP learns from: emoji scenes, or the user's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from reverie.corpora.captions import scene_caption
from reverie.corpora.concepts import Concept, concepts
from reverie.corpora.scenes import render, scene_at
from reverie.data.captioned import Captioned, open_captioned
from reverie.data.loader import shuffled_index
from reverie.data.remote import Unreachable
from reverie.errors import ReverieError

Picture = TypeVar("Picture")
Pair = tuple[np.ndarray, str]
"""A picture, uint8 (3, h, w), and its caption."""

ENGLISH_SHARE = 0.6  # of bare names; the others are Chinese
SHAPES = (3 / 4, 4 / 3)  # of what is cropped: its width by its height
TRIES = 100

log = logging.getLogger(__name__)


class Pairs(Protocol):
    """A stream of pairs without end, each a pure function of its number."""

    def __call__(self, index: int) -> Pair:
        """Return pair `index`."""

    def captions(self, count: int) -> Iterator[str]:
        """Tell captions to learn a vocabulary from: `count`, or as many as there are."""


@dataclass(frozen=True)
class ScenePairs:
    """Serve emoji scenes with captions, and in every `naming`-th batch distinct things under their bare names."""

    things: tuple[Concept, ...]
    seed: int
    batch: int
    naming: int

    def __call__(self, index: int) -> Pair:
        """Draw pair `index`."""
        if self.naming and index // self.batch % self.naming == self.naming - 1:
            return named_thing(self.things, self.seed, index, self.batch)
        return captioned_scene(self.things, self.seed, index)

    def captions(self, count: int) -> Iterator[str]:
        """Tell the first scenes."""
        return (scene_caption(self.things, self.seed, index) for index in range(count))


@dataclass(frozen=True)
class CaptionedPairs:
    """Serve a collection, anew shuffled in every pass, each picture cropped anew and resized to `size`.

    `smallest` is the least share of a picture's area that a crop keeps; 1 crops the largest square in the middle.
    """

    found: Captioned
    seed: int
    size: int
    smallest: float

    def __call__(self, index: int) -> Pair:
        """Read pair `index`; a picture that cannot be read gives its turn to the one after it."""
        turn, place = divmod(index, len(self.found))
        chosen = shuffled_index(self.seed, turn, len(self.found), place)
        which, picture = first_readable(self.found.picture, chosen, len(self.found))
        box = crop_box(picture.size, self.smallest, np.random.default_rng((self.seed, index, 7)))
        resized = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)), self.found.caption(which)

    def key(self, index: int) -> str:
        """Name the picture of pair `index`, where it can be read."""
        turn, place = divmod(index, len(self.found))
        return self.found.place(shuffled_index(self.seed, turn, len(self.found), place))

    def captions(self, count: int) -> Iterator[str]:
        """Tell captions from all over the collection."""
        step = -(-len(self.found) // count)
        return (self.found.caption(index) for index in range(0, len(self.found), step))


def first_readable(read: Callable[[int], Picture], chosen: int, count: int) -> tuple[int, Picture]:
    """Read picture `chosen` of `count`, or the first after it that is not damaged; each that is is named in the log."""
    for which in ((chosen + tried) % count for tried in range(TRIES)):
        try:
            return which, read(which)
        except Unreachable:
            raise
        except ReverieError as error:
            log.warning("%s; the next is taken for it", error)
    raise ReverieError(f"{TRIES} pictures in a row cannot be read; repair the collection")


def crop_box(size: tuple[int, int], smallest: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Choose what of a picture is seen: left, top, right and bottom in pixels.

    A share of the area between `smallest` and 1 and a shape between 3:4 and 4:3, as open_clip's random resized crop;
    the largest square in the middle where `smallest` is 1 or no such crop fits.
    """
    width, height = size
    if smallest < 1:
        for _ in range(10):
            area = width * height * rng.uniform(smallest, 1)
            shape = np.exp(rng.uniform(*np.log(SHAPES)))
            w, h = float(np.sqrt(area * shape)), float(np.sqrt(area / shape))
            if w <= width and h <= height:
                left, top = float(rng.uniform(0, width - w)), float(rng.uniform(0, height - h))
                return left, top, min(width, left + w), min(height, top + h)
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def captioned_scene(things: tuple[Concept, ...], seed: int, index: int) -> Pair:
    """Draw scene `index` with one caption: uint8 (3, 128, 128) and a sentence in English or Chinese."""
    scene = scene_at(things, seed, index)
    return np.ascontiguousarray(render(scene).transpose(2, 0, 1)), scene_caption(things, seed, index)


def named_thing(things: tuple[Concept, ...], seed: int, index: int, batch: int) -> Pair:
    """Draw item `index` of a batch in which no thing comes twice, each alone, and told by its bare name.

    Colour, size and arrangement tell most scenes of a batch apart, and a CLIP that sees no other batches learns little
    of the things themselves (measured: docs/measured/bundled-model.md).
    """
    step, place = divmod(index, batch)
    order = np.random.default_rng((seed, step, 5)).permutation(len(things))
    thing = things[order[place % len(things)]]
    rng = np.random.default_rng((seed, index, 6))
    names = thing.en if rng.random() < ENGLISH_SHARE else thing.zh
    picture = render(scene_at((thing,), seed, index, pair_share=0))
    return np.ascontiguousarray(picture.transpose(2, 0, 1)), names[rng.integers(len(names))]


def open_pairs(path: str, *, subset: str, seed: int, batch: int, naming: int, size: int, smallest: float) -> Pairs:
    """Open the collection at a path, or the emoji scenes where none is given."""
    if path:
        return CaptionedPairs(open_captioned(path), seed, size, smallest)
    return ScenePairs(concepts(subset), seed, batch, naming)
