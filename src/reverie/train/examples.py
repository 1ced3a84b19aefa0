"""Training examples: numbered pictures with captions, of emoji scenes or a collection. `sounds` has others.

All is a pure function of the number. `identity` says what the pictures depend on, so that what was computed of them
can be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from pydantic import NonNegativeInt, PositiveInt

from reverie.corpora.captions import BARE, caption, telling
from reverie.corpora.concepts import Concept
from reverie.corpora.drawings import drawing
from reverie.corpora.scenes import ANYWHERE, PAIR_SHARE, SIZE_WORDS, Scene, glyph, render, scene_at
from reverie.data.captioned import Captioned
from reverie.media.pictures import decode, to_rgb
from reverie.train.recipe import Share

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
class Augmentation:
    """Choose how pictures are varied: `variants` of each are encoded, each drawn anew from these chances."""

    variants: PositiveInt = 1
    flip: Share = 0.0  # of the variants is mirrored
    colour: Share = 0.0  # brightness, contrast and saturation are changed by factors of 1 - colour to 1 + colour
    random_crop: bool = False  # takes crops from anywhere, not from the middle


@dataclass(frozen=True)
class Wording:
    """Choose how captions are told anew in each pass, of tags between commas."""

    shuffle: bool = False
    keep: NonNegativeInt = 0  # of the first tags stay where they are, and are never left out
    tag_dropout: Share = 0.0  # of the other tags is left out
    versions: NonNegativeInt = 0  # of a caption come in turn; 0 is always another

    def tell(self, caption: str, index: int, turn: int) -> str:
        """Tell the caption of an example in a turn."""
        if not self.varied:
            return caption
        rng = np.random.default_rng((index, turn % (self.versions or turn + 1), 9))
        tags = [tag.strip() for tag in caption.split(",")]
        first, rest = tags[: self.keep], tags[self.keep :]
        rest = [tag for tag, draw in zip(rest, rng.random(len(rest)), strict=True) if draw >= self.tag_dropout]
        if self.shuffle:
            rng.shuffle(rest)
        return ", ".join([*first, *rest])

    @property
    def varied(self) -> bool:
        """Tell whether there is anything to tell anew."""
        return self.shuffle or self.tag_dropout > 0


PLAIN, AS_WRITTEN = Augmentation(), Wording()
OPAQUE = Image.new("L", (1, 1), 255)  # a mask all of which counts


@dataclass(frozen=True, eq=False)
class Pictures:
    """Serve pictures of a collection, of each the largest crop of a shape, resized to `size`, width and height.

    `members` are their numbers in the collection; `masks` tell by pictures' names which parts count: then a fourth
    channel of each picture holds the mask, 255 where all counts. In a pass each picture comes `repeats` times.
    """

    found: Captioned
    size: Size
    members: Sequence[int]
    augmentation: Augmentation = PLAIN
    wording: Wording = AS_WRITTEN
    masks: Mapping[str, Path] = field(default_factory=dict)
    repeats: int = 1

    def __len__(self) -> int:
        return len(self.members) * self.augmentation.variants

    @property
    def identity(self) -> Identity:
        """Return which files there are, when they were last changed, and how they are cut and varied."""
        masks = [[name, file.stat().st_size, file.stat().st_mtime_ns] for name, file in sorted(self.masks.items())]
        return ["pictures", self.size, list(self.members), asdict(self.augmentation), masks, *self.found.identity]

    @property
    def masked(self) -> bool:
        """Tell whether pictures have a fourth channel."""
        return bool(self.masks)

    def picture(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """Read a picture. Raises ReverieError, naming it, where it is damaged."""
        number, rng = self._draw(index)
        flip, box = self._crop(self.found.size(number), rng)
        picture = self._cut(self.found.picture(number), flip, box)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            if self.augmentation.colour:
                factor = float(rng.uniform(1 - self.augmentation.colour, 1 + self.augmentation.colour))
                picture = enhance(picture).enhance(factor)
        if not self.masked:
            return np.array(picture)
        file = self.masks.get(self.found.name(number))
        picture.putalpha(self.align(index, OPAQUE if file is None else to_rgb(decode(file)).convert("L")))
        return np.array(picture)

    def align(self, index: int, other: Image.Image) -> Image.Image:
        """Cut and mirror another picture of the same thing, such as a mask or a hint, as picture `index` is."""
        number, rng = self._draw(index)
        size = self.found.size(number)
        return self._cut(other.resize(size), *self._crop(size, rng))

    def original(self, index: int) -> Image.Image:
        """Return a picture as it lies in its collection."""
        return self.found.picture(self._draw(index)[0])

    def name(self, index: int) -> str:
        """Return the name of a picture's file, without its suffix."""
        return self.found.name(self._draw(index)[0])

    def place(self, index: int) -> str:
        """Say where a picture lies."""
        return self.found.place(self._draw(index)[0])

    @property
    def blank(self) -> UInt8[np.ndarray, "h w c"]:
        """Return a black picture of the size."""
        return np.zeros((self.size[1], self.size[0], 4 if self.masked else 3), np.uint8)

    def caption(self, index: int, turn: int) -> str:
        """Return its caption, whose tags a turn may tell anew."""
        number, _ = self._draw(index)
        return self.wording.tell(self.found.caption(number), index, turn)

    @property
    def tellings(self) -> int:
        """Return after how many turns captions repeat, 0 where they do not."""
        return self.wording.versions if self.wording.varied else 1

    def sizes(self, index: int) -> MicroConditioning:
        """Return what SDXL is told of a picture: crop and target in pixels of the resized one (2307.01952, 2.2)."""
        number, rng = self._draw(index)
        original = self.found.size(number)
        _, (left, top, right, _) = self._crop(original, rng)
        scale = self.size[0] / (right - left)
        return original, (round(left * scale), round(top * scale)), self.size

    def _draw(self, index: int) -> tuple[int, np.random.Generator]:
        """Return the number of a picture, and the random numbers of its variant."""
        place, variant = divmod(index, self.augmentation.variants)
        return self.members[place], np.random.default_rng((self.members[place], variant, 8))

    def _crop(self, size: Size, rng: np.random.Generator) -> tuple[bool, tuple[float, float, float, float]]:
        """Choose whether a picture is mirrored, and what of it then is seen: left, top, right and bottom."""
        flip, places = bool(rng.random() < self.augmentation.flip), rng.random(2)
        scale = min(size[0] / self.size[0], size[1] / self.size[1])
        width, height = self.size[0] * scale, self.size[1] * scale
        across, down = places if self.augmentation.random_crop else (0.5, 0.5)
        left, top = float((size[0] - width) * across), float((size[1] - height) * down)
        return flip, (left, top, min(left + width, size[0]), min(top + height, size[1]))

    def _cut(self, picture: Image.Image, flip: bool, box: tuple[float, float, float, float]) -> Image.Image:
        whole = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture
        return whole.resize(self.size, Image.Resampling.BICUBIC, box)
