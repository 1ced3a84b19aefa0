"""Writing GIFs frame by frame; each frame holds only the pixels that changed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import getdata

TOLERANCE = 4  # grey levels that a pixel may stray before it is drawn again: below what an eye sees in motion
COLOURS = 255  # of 256, one is left to say "as before"
MOST_FPS = 50  # a shorter delay than 0.02 s is played as 0.1 s by browsers
BLOCK = 255  # bytes of a sub-block (GIF89a, 15)

Box = tuple[int, int, int, int]


class GifWriter:
    """Write a GIF that plays forever, holding one frame in memory.

    Pillow's own writer gathers all frames before it writes any. Here a frame is cut to the box of the pixels that
    changed, with a palette of its own, and those within it that did not are transparent where that makes it smaller.
    A pixel changes where it strays by more than TOLERANCE levels from what was last drawn there, so that small errors
    never add up. Delays are whole hundredths of a second, rounded so that the film keeps its time.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction, comment: str = "") -> None:
        self._file = path.open("wb")
        self._fps, self._count = fps, 0
        self._drawn: NDArray[np.int16] | None = None
        self._file.write(b"GIF89a" + size[0].to_bytes(2, "little") + size[1].to_bytes(2, "little") + bytes(3))
        self._file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # again, without end
        if comment:
            self._file.write(b"\x21\xfe" + _blocks(comment.encode()))

    def add(self, picture: Image.Image) -> None:
        """Write a frame, an RGB picture of the film's size."""
        pixels = np.asarray(picture, dtype=np.int16)
        if self._drawn is None:
            self._drawn = pixels - 2 * TOLERANCE  # all of the first frame is new
        changed = np.abs(pixels - self._drawn).max(axis=2) > TOLERANCE
        box = _box(changed)
        within = np.s_[box[1] : box[3], box[0] : box[2]]
        patch = picture.crop(box).quantize(COLOURS, Image.Quantize.FASTOCTREE)
        whole = self._frame(patch, box)
        sparse = self._frame(_see_through(patch, changed[within]), box)
        if len(sparse) < len(whole):
            self._drawn[changed] = pixels[changed]
        else:
            self._drawn[within] = pixels[within]
        self._file.write(min(sparse, whole, key=len))
        self._count += 1

    def _frame(self, patch: Image.Image, box: Box) -> bytes:
        """Encode a part of a frame, with its place and delay; the colour after its last one is transparent."""
        start, end = (round(index * 100 / self._fps) for index in (self._count, self._count + 1))
        settings = {"duration": 10 * (end - start), "transparency": _colours(patch), "disposal": 1, "interlace": 0}
        return b"".join(getdata(patch, box[:2], include_color_table=True, **settings))

    def finish(self) -> None:
        """Write the end of the file and close it."""
        self._file.write(b";")
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()


def _box(changed: NDArray[np.bool_]) -> Box:
    """Return left, top, right and bottom around what changed; one pixel where nothing did."""
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if not len(rows):
        return 0, 0, 1, 1
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _colours(patch: Image.Image) -> int:
    """Count the colours of a palette picture."""
    return len(patch.getpalette() or []) // 3


def _see_through(patch: Image.Image, changed: NDArray[np.bool_]) -> Image.Image:
    """Give the pixels of a palette picture that did not change the colour after its last one; drop unused ones."""
    used, colours = np.unique(np.asarray(patch)[changed], return_inverse=True)
    pixels = np.full(changed.shape, len(used), dtype=np.uint8)
    pixels[changed] = colours
    sparse = Image.fromarray(pixels, "L")
    palette = np.reshape(patch.getpalette() or [], (-1, 3))
    sparse.putpalette(palette[used].flatten().tolist())  # makes it a palette picture
    return sparse


def _blocks(data: bytes) -> bytes:
    """Cut data into sub-blocks, each after its length, with an empty one at the end."""
    parts = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
