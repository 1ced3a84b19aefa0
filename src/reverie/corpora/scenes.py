"""What an emoji scene shows, how it is drawn and how it is told: objects on a coloured ground, with captions.

A scene is a pure function of (seed, index): any worker can draw scene 1,234,567 without drawing the ones before it, so
a training run resumes at any step and gives the same pictures with any number of workers.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reverie.corpora.concepts import Concept
from reverie.errors import ReverieError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH = 109  # the one strike of the bitmap font, in pixels an em

COLOURS: dict[str, tuple[str, tuple[int, int, int]]] = {  # English -> (Chinese, sRGB)
    "red": ("红色", (214, 40, 40)),
    "orange": ("橙色", (247, 140, 40)),
    "yellow": ("黄色", (250, 220, 70)),
    "green": ("绿色", (60, 160, 70)),
    "cyan": ("青色", (80, 205, 215)),
    "blue": ("蓝色", (50, 90, 210)),
    "purple": ("紫色", (130, 60, 170)),
    "pink": ("粉色", (250, 170, 200)),
    "brown": ("棕色", (120, 75, 45)),
    "gray": ("灰色", (130, 130, 130)),
    "black": ("黑色", (25, 25, 25)),
    "white": ("白色", (245, 245, 245)),
}
DEFAULT_GROUND = "white"  # what a scene stands on where its caption names no ground
TINTS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")  # colours that things are drawn in
COLOURED = 70  # saturation and value, of 255, above which a pixel has a hue
COLOUR_JITTER = 6  # grey levels either side of the named colour

CANVAS = 128
CELL = 16  # places are multiples of this: one latent cell, so a small network need not learn sub-cell shifts
SIZES = {"small": 48, "": 80, "large": 112}  # side of a lone object in pixels, by its size word
SIZE_WORDS = ("", "", "small", "large")  # which are drawn from, as often as they stand here
PAIR_SIZE = 64  # side of each of two objects
PAIR_SHARE = 0.25  # of the scenes hold two objects
ANYWHERE = CANVAS // CELL  # cells from the middle: all of them
HELD_OUT = 12  # one in so many object-colour and object-object pairs is kept from training


@dataclass(frozen=True)
class Placed:
    """Put one concept on the canvas: top left corner and side, in pixels."""

    concept: Concept
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """Describe one picture: its ground, its one or two objects and how they stand ("", "beside" or "above")."""

    colour: str
    rgb: tuple[int, int, int]
    objects: tuple[Placed, ...]
    size_word: str = ""
    relation: str = ""
    tint: str = ""  # colour of a lone object that its caption names, its own or another


def is_held_out(*parts: str) -> bool:
    """Tell whether an (emoji, colour) or an unordered (emoji, emoji) pair is kept from training, by a fixed hash."""
    return zlib.crc32(" ".join(sorted(parts)).encode()) % HELD_OUT == 0


def scene_is_held_out(scene: Scene) -> bool:
    """Tell whether any pair in the scene is held out."""
    emojis = [placed.concept.emoji for placed in scene.objects]
    return any(is_held_out(emoji, scene.colour) for emoji in emojis) or (len(emojis) == 2 and is_held_out(*emojis))


def draw_scene(
    concepts: Sequence[Concept],
    rng: np.random.Generator,
    pair_share: float = PAIR_SHARE,
    scatter: int = ANYWHERE,
    sizes: Sequence[str] = SIZE_WORDS,
    default_share: float = 0.0,
    tint_share: float = 0.0,
) -> Scene:
    """Choose a scene: `pair_share` of them hold two objects; all stand at most `scatter` cells from the middle.

    The size of a lone object is drawn from the words `sizes`. `default_share` of them are sure of the default ground.
    Of the lone objects that have a colour, `tint_share` are told by one: a third by their own, the rest recoloured.
    """
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    if default_share and rng.random() < default_share:
        colour = DEFAULT_GROUND
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    red, green, blue = (int(np.clip(c + j, 0, 255)) for c, j in zip(COLOURS[colour][1], jitter, strict=True))
    count = 2 if rng.random() < pair_share else 1
    chosen = [concepts[i] for i in rng.choice(len(concepts), size=count, replace=False)]
    if count == 1:
        word = sizes[int(rng.integers(len(sizes)))]
        size = SIZES[word]
        x, y = (int(v) * CELL for v in rng.integers(*_cells(size, scatter), 2))
        tint = _tint(chosen[0], colour, rng) if tint_share and rng.random() < tint_share else ""
        return Scene(colour, (red, green, blue), (Placed(chosen[0], x, y, size),), word, tint=tint)
    relation = ("beside", "above")[rng.integers(2)]
    across = int(rng.integers(*_cells(PAIR_SIZE, scatter))) * CELL
    first, second = ((0, across), (PAIR_SIZE, across)) if relation == "beside" else ((across, 0), (across, PAIR_SIZE))
    placed = (Placed(chosen[0], *first, PAIR_SIZE), Placed(chosen[1], *second, PAIR_SIZE))
    return Scene(colour, (red, green, blue), placed, "", relation)


def _tint(concept: Concept, ground: str, rng: np.random.Generator) -> str:
    """Choose a colour to tell an object by, other than its ground's.

    None where it has no colour of its own, as a panda, or is called by one, as a blue heart.
    """
    own = own_colour(concept.emoji)
    if not own or any(word in COLOURS for name in concept.en for word in name.split()):
        return ""
    chosen = own if rng.integers(3) == 0 else TINTS[rng.integers(len(TINTS))]
    return chosen if chosen != ground else ""


def _cells(size: int, scatter: int) -> tuple[int, int]:
    """Return the first cell that an object of a size may start in, and the one after the last."""
    free = (CANVAS - size) // CELL
    return max(0, free // 2 - scatter), min(free, free // 2 + scatter) + 1


def scene_at(
    concepts: Sequence[Concept],
    seed: int,
    index: int,
    *,
    held_out: bool = False,
    pair_share: float = PAIR_SHARE,
    scatter: int = ANYWHERE,
    sizes: Sequence[str] = SIZE_WORDS,
    default_share: float = 0.0,
    tint_share: float = 0.0,
) -> Scene:
    """Return scene number `index` of the stream `seed`: free of held-out pairs, or with at least one if `held_out`.

    The other options are those of `draw_scene`.
    """
    rng = np.random.default_rng((seed, index))
    while True:
        scene = draw_scene(concepts, rng, pair_share, scatter, sizes, default_share, tint_share)
        if scene_is_held_out(scene) == held_out:
            return scene


@cache
def _font() -> ImageFont.FreeTypeFont:
    if not FONT.is_file():
        raise ReverieError(f"no emoji font at {FONT}; install the Debian package fonts-noto-color-emoji")
    return ImageFont.truetype(str(FONT), GLYPH)


@lru_cache(maxsize=2048)  # 100 KB each on the mean: all sizes of 500 concepts
def glyph(emoji: str, size: int) -> np.ndarray:
    """Return an emoji as premultiplied float32 RGBA in [0, 255] and [0, 1], shape (size, size, 4)."""
    font = _font()
    left, top, right, bottom = (int(edge) for edge in font.getbbox(emoji))
    if right <= left or bottom <= top:
        raise ReverieError(f"the font {FONT.name} has no picture for {emoji!r}; install a newer fonts-noto-color-emoji")
    side = max(right - left, bottom - top)
    canvas = Image.new("RGBA", (side, side))
    corner = ((side - (right - left)) // 2 - left, (side - (bottom - top)) // 2 - top)
    ImageDraw.Draw(canvas).text(corner, emoji, font=font, embedded_color=True)
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS), np.float32).copy()
    pixels[..., 3] /= 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


@cache
def own_colour(emoji: str) -> str:
    """Return the colour of an emoji, see `colour_of`."""
    return colour_of(glyph(emoji, SIZES[""]))


def colour_of(pixels: np.ndarray) -> str:
    """Return the colour, of TINTS or brown, that most of a glyph has; "" where less than a third of it has a hue."""
    hue, saturation, value = _main_colour(pixels)
    if hue is None:
        return ""
    named = (*TINTS, "brown")
    mine = np.array(colorsys.hsv_to_rgb(hue / 256, saturation / 255, value / 255)) * 255
    return min(named, key=lambda name: float(np.square(mine - COLOURS[name][1]).sum()))


def recolour(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Return a glyph whose main hue is turned to that of `colour`, with its saturation and brightness scaled to match.

    The other hues turn with it; what has no hue, such as eyes and outlines, stays. Glyphs as `glyph` returns them.
    """
    hue, saturation, value = _main_colour(pixels)
    if hue is None:
        return pixels
    hsv, alpha = _hsv(pixels)
    target = _hsv_of(colour)
    coloured = hsv[..., 1] > COLOURED
    hsv[..., 0] = np.where(coloured, (hsv[..., 0] + target[0] - hue) % 256, hsv[..., 0])
    for channel, main in ((1, saturation), (2, value)):
        scaled = np.clip(hsv[..., channel] * target[channel] / main, 0, 255)
        hsv[..., channel] = np.where(coloured, scaled, hsv[..., channel])
    rgb = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"), np.float32)
    return np.concatenate([rgb * alpha, alpha], -1)


def _main_colour(pixels: np.ndarray) -> tuple[float | None, float, float]:
    """Return the hue, saturation and value, each in [0, 255], that most of a glyph has; no hue where most is grey."""
    hsv, alpha = _hsv(pixels)
    opaque = alpha[..., 0] > 0.5
    coloured = opaque & (hsv[..., 1] > COLOURED) & (hsv[..., 2] > COLOURED)
    if coloured.sum() < opaque.sum() / 3:
        return None, 0.0, 0.0
    counts = np.bincount((hsv[coloured, 0] // 16).astype(int), minlength=16)
    near = counts + np.roll(counts, 1) + np.roll(counts, -1)
    middle = 16 * int(near.argmax()) + 8
    off = (hsv[..., 0] - middle + 128) % 256 - 128
    main = coloured & (np.abs(off) <= 24)
    saturation, value = (float(np.median(hsv[main, channel])) for channel in (1, 2))
    return (middle + float(np.median(off[main]))) % 256, saturation, value


def _hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hue, saturation and value of a premultiplied glyph, float32 in [0, 255], and its alpha."""
    alpha = pixels[..., 3:]
    rgb = np.clip(pixels[..., :3] / np.maximum(alpha, 1 / 255), 0, 255).astype(np.uint8)
    return np.array(Image.fromarray(rgb).convert("HSV"), np.float32), alpha


@cache
def _hsv_of(colour: str) -> tuple[float, ...]:
    pixel = Image.new("RGB", (1, 1), COLOURS[colour][1]).convert("HSV").getpixel((0, 0))
    return tuple(float(v) for v in pixel) if isinstance(pixel, tuple) else ()


def render(scene: Scene, scale: int = 1, picture_of: Callable[[str, int], np.ndarray] = glyph) -> np.ndarray:
    """Draw a scene: uint8 RGB of shape (128 scale, 128 scale, 3), every emoji by `picture_of(emoji, size)`."""
    side = CANVAS * scale
    picture = np.empty((side, side, 3), np.float32)
    picture[:] = scene.rgb
    for placed in scene.objects:
        x, y, size = (scale * value for value in (placed.x, placed.y, placed.size))
        part = picture[y : y + size, x : x + size]
        pixels = picture_of(placed.concept.emoji, size)
        if scene.tint and scene.tint != own_colour(placed.concept.emoji):
            pixels = recolour(pixels, scene.tint)
        part *= 1 - pixels[..., 3:]
        part += pixels[..., :3]
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def crop_at(things: Sequence[Concept], seed: int, index: int, size: int, pair_share: float = PAIR_SHARE) -> np.ndarray:
    """Draw a scene and cut a square of `size` pixels that holds a part of an object: uint8 (3, size, size)."""
    scene = scene_at(things, seed, index, pair_share=pair_share)
    picture = render(scene)
    if size < CANVAS:
        rng = np.random.default_rng((seed, index, 1))
        first = scene.objects[0]
        x, y = (_offset(start, first.size, size, rng) for start in (first.x, first.y))
        picture = picture[y : y + size, x : x + size]
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _offset(start: int, length: int, size: int, rng: np.random.Generator) -> int:
    """Choose where to cut along an axis: on the cell grid, overlapping the object as far as it goes."""
    low, high = sorted((start, start + length - size))
    low, high = max(0, low), min(CANVAS - size, max(0, high))
    return int(rng.integers(low // CELL, high // CELL + 1)) * CELL
