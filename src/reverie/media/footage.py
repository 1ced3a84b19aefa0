"""Reading films: the frames of a film file, an animated picture or a folder of pictures, one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import list_files
from reverie.media.encoder import COMMENT, ffmpeg_errors, need_av
from reverie.media.pictures import DAMAGED, FORMATS, REQUEST, read_texts, to_rgb, upright

ANIMATED = (".gif", ".webp", ".png", ".apng")  # read by Pillow
FILMS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv")
# FFmpeg would follow playlists to other files and to the network; these hold their frames themselves.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg"
LARGEST = 8192  # pixels of an edge
SHORTEST, FINEST, ROUNDING = 10.0, 10, 10.0  # milliseconds: a delay that is believed, a common divisor, GIF's unit

Timed = Iterable[tuple[float, Image.Image]]


@dataclass(frozen=True)
class Footage:
    """Tell of a film: frames a second (None for a folder), size in pixels, how many frames (None where unknown)."""

    path: Path
    fps: float | None
    size: tuple[int, int]
    count: int | None
    texts: dict[str, str]
    _open: Callable[[], Iterator[Image.Image]] = field(repr=False)

    def pictures(self) -> Iterator[Image.Image]:
        """Yield the frames in order, upright and as RGB, holding one at a time.

        They come evenly: where a film's own do not, the one that stands at each time.
        """
        return self._open()


def read(path: str | Path) -> Footage:
    """Open a film to read its frames: MP4, WebM, MOV, MKV, AVI, GIF, animated WebP or PNG, or a folder of pictures.

    Raises ReverieError where there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ReverieError(f"no film at '{path}': there is no such file or folder")
    if path.suffix.lower() in ANIMATED:
        return _read_animation(path)
    if path.suffix.lower() in FILMS:
        return _read_film(path)
    allowed = ", ".join((*FILMS, *ANIMATED))
    raise ReverieError(f"cannot read '{path}' as a film; give {allowed} or a folder of pictures")


def carried(path: str | Path) -> dict[str, str]:
    """Return the texts that a film, a picture or a folder's first frame carries, without decoding any frame.

    Raises ReverieError where it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = _files(path)[0]
    if path.suffix.lower() in FILMS:
        need_av(path)
        with _open_container(path) as film:
            return _tags(film)
    with _open_picture(path) as picture:
        return _texts(picture)


def _tags(film: Any) -> dict[str, str]:
    """Return a film's tags, whose names some containers write in capitals."""
    return {REQUEST if name.lower() == COMMENT else name.lower(): text for name, text in film.metadata.items()}


def _texts(picture: Image.Image) -> dict[str, str]:
    """Return a picture's texts, a GIF's from its comment."""
    texts, comment = read_texts(picture), picture.info.get(COMMENT)
    if isinstance(comment, bytes) and comment.startswith(b"{"):
        texts.setdefault(REQUEST, comment.decode("utf-8", errors="replace"))
    return texts


def _files(folder: Path) -> list[Path]:
    """List the pictures in a folder by their names, numbers in them as numbers: frame2 before frame10."""
    if not (files := list_files(folder, FORMATS)):
        raise ReverieError(f"no pictures in '{folder}'; a film's folder holds {', '.join(FORMATS)}")
    return files


def _read_folder(path: Path) -> Footage:
    files = _files(path)
    with _open_picture(files[0]) as first:
        size, texts = upright(first).size, _texts(first)

    def pictures() -> Iterator[Image.Image]:
        for file in files:
            with _open_picture(file) as picture:
                yield _upright(picture)

    return Footage(path, None, size, len(files), texts, pictures)


@contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture with Pillow, and say in one line what it finds damaged."""
    try:
        with Image.open(path) as picture:
            yield picture
    except DAMAGED as error:
        raise ReverieError(f"cannot read '{path}': not a picture, or damaged") from error


def _upright(picture: Image.Image) -> Image.Image:
    return to_rgb(upright(picture))


def _read_animation(path: Path) -> Footage:
    """Read with Pillow; the rate follows from the frames' delays."""
    with _open_picture(path) as film:
        texts, size, count = _texts(film), film.size, int(getattr(film, "n_frames", 1))
        delays = [_delay(film, index) for index in range(count)]
    fps, seconds = rate_of(delays), sum(delays) / 1000

    def frames() -> Timed:
        with _open_picture(path) as film:
            at = 0.0
            for index, delay in enumerate(delays):
                film.seek(index)
                yield at, _upright(film)
                at += delay / 1000

    return Footage(path, fps, size, max(1, round(seconds * fps)), texts, lambda: evenly(frames(), fps, seconds))


def _delay(film: Image.Image, index: int) -> float:
    """Return how many milliseconds a frame stands, as browsers play it: a tenth of a second for 10 or less.

    Source: WebKit, ImageDecoderCG.cpp (frameDurationAtIndex), which follows Firefox.
    """
    film.seek(index)
    film.load()
    delay = float(film.info.get("duration") or 0)
    return delay if delay > SHORTEST else 100.0


def rate_of(delays: Sequence[float]) -> float:
    """Return the frames a second at which no frame of an animation is lost, from their delays in milliseconds.

    Writers join frames that stand still into long ones, and round times, GIF's to 10 ms: where all delays are multiples
    of one but for that, the rate is of this one. Else it is of their greatest common divisor, or of the shortest where
    the divisor is finer than any clock that is meant.
    """
    shortest = min(delays)
    for base in (shortest + ROUNDING / 2, shortest):
        frame = mean(delay for delay in delays if delay <= 1.5 * base)
        counts = [max(1, round(delay / frame)) for delay in delays]
        frame = sum(delays) / sum(counts)
        ends = zip(accumulate(delays), accumulate(counts), strict=True)
        if all(abs(time - count * frame) <= ROUNDING for time, count in ends):
            return 1000 / frame
    divisor = math.gcd(*map(round, delays))
    return 1000 / (divisor if divisor >= FINEST else shortest)


def _read_film(path: Path) -> Footage:
    """Read with PyAV, upright as the film says."""
    need_av(path)
    with _open_container(path) as film:
        stream = film.streams.video[0]
        size, fps = (stream.width, stream.height), float(stream.average_rate or stream.guessed_rate or 25)
        texts = _tags(film)
        count = stream.frames or None
        with ffmpeg_errors(path, "read"):
            first = next(film.decode(stream), None)
        if first is None:
            raise ReverieError(f"cannot read '{path}': it holds no frames")
        if first.rotation % 180:
            size = size[::-1]

    def frames() -> Timed:
        with ffmpeg_errors(path, "read"), _open_container(path) as film:
            stream, start = film.streams.video[0], None
            for frame in film.decode(stream):
                time = frame.time or 0.0
                start = time if start is None else start
                yield time - start, _picture(frame)

    return Footage(path, fps, size, count, texts, lambda: evenly(frames(), fps))


def _open_container(path: Path) -> Any:
    import av

    with ffmpeg_errors(path, "read"):
        allowed = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        film = av.open(str(path), options=allowed, metadata_errors="replace")
    if not film.streams.video or film.streams.video[0].codec_context is None:
        film.close()
        raise ReverieError(f"cannot read '{path}': it holds no pictures of a known codec")
    width, height = film.streams.video[0].width, film.streams.video[0].height
    if max(width, height) > LARGEST:
        film.close()
        raise ReverieError(f"'{path}' has {width}x{height} pixels; an edge has at most {LARGEST}")
    return film


def _picture(frame: Any) -> Image.Image:
    """Turn a decoded frame into a picture; colours follow what the film says, else BT.601 as players do."""
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def evenly(timed: Timed, fps: int | float, seconds: float | None = None) -> Iterator[Image.Image]:
    """Yield what stands at the times 0, 1 / fps, 2 / fps, ... of frames with their times in seconds, rising.

    The last one stands until `seconds`, or for one frame.
    """
    shown, last = 0, None
    for time, picture in timed:
        while last is not None and shown < int(time * fps + 0.5):  # rounded times may be half a frame early
            yield last
            shown += 1
        last = picture
    if last is not None:
        for _ in range(max(1, round((seconds or 0.0) * fps) - shown)):
            yield last
