"""Writing films frame by frame: MP4, WebM, GIF, animated WebP, a folder of PNGs or a contact sheet.

Each frame of a GIF holds only the pixels that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import getdata

from reverie.errors import ReverieError
from reverie.files import atomic_folder, atomic_write, check_folder, check_place, sweep
from reverie.media.encoder import MP4, WEBM, WEBP, StreamWriter, Waveform, need_av
from reverie.media.pictures import REQUEST, grid, save

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


STREAMED = {".mp4": MP4, ".webm": WEBM, ".webp": WEBP}
SHEETS = (".png", ".jpg", ".jpeg")
CONTAINERS = (".mp4", ".webm", ".gif", ".webp")
ALLOWED = f"{', '.join(CONTAINERS)} for a film, {', '.join(SHEETS)} for a contact sheet, or a folder for its frames"
FRAME = "frame-{:05}.png"
SHEET = 16  # pictures on a contact sheet
FPS_LIMITS = (0.01, 240.0)

Rate = int | float | Fraction


@runtime_checkable
class Writer(Protocol):
    """Write a film frame by frame; `finish` completes the file, `abandon` only closes it."""

    def add(self, picture: Image.Image, /) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


@dataclass(frozen=True)
class Reel:
    """Hold what a film is but its frames: the rate, the texts it carries and its sound."""

    fps: Fraction
    texts: Mapping[str, str] = field(default_factory=dict)
    sound: Waveform | None = None


@runtime_checkable
class Pictured(Protocol):
    """Hold a picture, as the frames of an animation do."""

    @property
    def picture(self) -> Image.Image: ...


def check(path: str | Path, fps: Rate, *, sound: bool = False) -> None:
    """Raise ReverieError where a film cannot be written: unknown container, a rate it cannot show, no folder."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix and suffix not in (*CONTAINERS, *SHEETS):
        raise ReverieError(f"unknown container '{path.suffix}' of '{path}'; choose from {ALLOWED}")
    if not FPS_LIMITS[0] <= fps <= FPS_LIMITS[1]:
        raise ReverieError(
            f"{fps:g} frames a second are not possible; choose from {FPS_LIMITS[0]} to {FPS_LIMITS[1]:g}"
        )
    if suffix == ".gif" and fps > MOST_FPS:
        raise ReverieError(
            f"GIF shows at most {MOST_FPS} frames a second, not {fps:g}; lower it, or write .webp or .mp4"
        )
    if sound and not holds_sound(path):
        raise ReverieError(f"'{path}' cannot hold sound; write .mp4 or .webm, or leave out the sound")
    if suffix in STREAMED:
        need_av(path)
    _check_place(path, folder=not suffix)


def holds_sound(path: str | Path) -> bool:
    """Tell whether a film of this name can hold sound."""
    form = STREAMED.get(Path(path).suffix.lower())
    return form is not None and form.audio is not None


def _check_place(path: Path, folder: bool) -> None:
    if not folder:
        check_place(path)
        return
    check_folder(path.parent)
    if path.exists() and not _is_ours(path):
        raise ReverieError(
            f"'{path}' is there and holds other things than frames; give a new name for the frames' folder"
        )


def _is_ours(path: Path) -> bool:
    """Tell whether a folder is empty or holds nothing but frames that an earlier film left."""
    return path.is_dir() and all(file.name == FRAME.format(index) for index, file in enumerate(sorted(path.iterdir())))


def write(
    frames: Iterable[Image.Image | Pictured],
    path: str | Path,
    fps: Rate,
    *,
    texts: Mapping[str, str] | None = None,
    sound: Waveform | None = None,
) -> int:
    """Write frames, as they come, to a film and return how many there were.

    The suffix of `path` says what is written: .mp4 (H.264), .webm (VP9), .gif, .webp, a contact sheet (.png, .jpg), or
    with none a folder of PNGs. `texts` go into the file; `sound` as far as the film lasts. Memory holds what an encoder
    looks ahead, not the film. Raises ReverieError for what cannot be written, frames of several sizes, and no frames.
    """
    count = 0
    with recording(path, fps, texts=texts, sound=sound) as add:
        for frame in frames:
            add(frame if isinstance(frame, Image.Image) else frame.picture)
            count += 1
    return count


@contextmanager
def recording(
    path: str | Path, fps: Rate, *, texts: Mapping[str, str] | None = None, sound: Waveform | None = None
) -> Iterator[Callable[[Image.Image], None]]:
    """Yield the function that adds a frame to the film at `path`; it is there once the context ends well. See `write`.

    `fps` are frames a second; `texts` and `sound` are written into it where its format holds them.
    """
    path = Path(path)
    check(path, fps, sound=sound is not None)
    sweep(path)
    reel = Reel(Fraction(fps).limit_denominator(1001), texts or {}, sound)
    with _place(path) as temporary:
        film = _FilmWriter(path, temporary, reel)
        try:
            yield film.add
        except BaseException:
            film.abandon()
            raise
        film.finish()


def _place(path: Path) -> AbstractContextManager[Path]:
    """Give what is written until the film is complete, and then stands at `path` at once."""
    if not path.suffix:
        return atomic_folder(path)
    if path.suffix.lower() in SHEETS:
        return nullcontext(path)  # written at the end, by `save`
    return atomic_write(path)


class _FilmWriter:
    """Write frames of one size; the writer is made once the first tells it."""

    def __init__(self, path: Path, temporary: Path, reel: Reel) -> None:
        self._path, self._temporary, self._reel = path, temporary, reel
        self._writer: Writer | None = None
        self._size, self._count = (0, 0), 0

    def add(self, picture: Image.Image) -> None:
        if self._writer is None:
            self._size = picture.size
            self._writer = _writer(self._path, self._temporary, self._size, self._reel)
        if picture.size != self._size:
            sizes = [f"{width}x{height}" for width, height in (picture.size, self._size)]
            raise ReverieError(
                f"frame {self._count} has {sizes[0]} pixels, and the film {sizes[1]}; give frames of one size"
            )
        self._writer.add(picture if picture.mode == "RGB" else picture.convert("RGB"))
        self._count += 1

    def finish(self) -> None:
        if self._writer is None:
            raise ReverieError(f"zero frames for '{self._path}'; a film needs at least one")
        self._writer.finish()

    def abandon(self) -> None:
        if self._writer is not None:
            with suppress(ReverieError, OSError):
                self._writer.abandon()


def _writer(path: Path, temporary: Path, size: tuple[int, int], reel: Reel) -> Writer:
    suffix = path.suffix.lower()
    if suffix in STREAMED:
        return StreamWriter(STREAMED[suffix], temporary, size, reel.fps, reel.texts, reel.sound)
    if suffix == ".gif":
        return GifWriter(temporary, size, reel.fps, reel.texts.get(REQUEST, ""))
    return SheetWriter(temporary, reel.texts) if suffix in SHEETS else FolderWriter(temporary, reel.texts)


class FolderWriter:
    """Write each frame as a PNG."""

    def __init__(self, path: Path, texts: Mapping[str, str]) -> None:
        self._path, self._texts, self._count = path, texts, 0

    def add(self, picture: Image.Image) -> None:
        """Write a frame."""
        save(_with_texts(picture, self._texts), self._path / FRAME.format(self._count))
        self._count += 1

    def finish(self) -> None:
        """Do nothing: each frame is complete."""

    abandon = finish


class SheetWriter:
    """Lay frames out on one sheet: the first, the last and what lies evenly between, SHEET at most.

    How many will come is not known: of those so far, every first, second, fourth, ... is kept.
    """

    def __init__(self, path: Path, texts: Mapping[str, str]) -> None:
        self._path, self._texts, self._stride, self._count = path, texts, 1, 0
        self._kept: dict[int, Image.Image] = {}
        self._last: Image.Image | None = None

    def add(self, picture: Image.Image) -> None:
        """Keep a frame for now."""
        self._last = picture
        if self._count % self._stride == 0:
            self._kept[self._count] = picture
        if len(self._kept) > 4 * SHEET:
            self._stride *= 2
            self._kept = {index: kept for index, kept in self._kept.items() if index % self._stride == 0}
        self._count += 1

    def finish(self) -> None:
        """Write the sheet."""
        if self._last is None:
            return
        kept, last = {**self._kept, self._count - 1: self._last}, self._count - 1
        wanted = [index * last / max(1, SHEET - 1) for index in range(SHEET)]
        chosen = sorted({min(kept, key=lambda index: abs(index - place)) for place in wanted})
        save(_with_texts(grid([kept[index] for index in chosen]), self._texts), self._path)

    def abandon(self) -> None:
        """Let the frames go."""
        self._kept, self._last = {}, None


def _with_texts(picture: Image.Image, texts: Mapping[str, str]) -> Image.Image:
    picture = picture.copy()
    picture.info.clear()
    picture.info.update(texts)
    return picture
