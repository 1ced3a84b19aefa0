"""Encoding films as MP4, WebM or animated WebP, frame by frame through PyAV, with their sound and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.media.pictures import REQUEST, exif_texts

if TYPE_CHECKING:
    from av.container import OutputContainer

COMMENT = "comment"  # the tag that holds our JSON: players show it, and every container knows it
THREADS = 4  # a number of ours: x264 and VP9 write other bytes with another number
BT709 = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}  # ITU-T H.273; range: 16 to 235
VP8X_EXIF = 0x08  # flag of WebP's extended header


@runtime_checkable
class Waveform(Protocol):
    """Hold samples "channels n" in [-1, 1] and their rate in hertz, as `codecs.sound.Sound` does."""

    @property
    def samples(self) -> Any: ...
    @property
    def rate(self) -> int: ...


@dataclass(frozen=True)
class Format:
    """Say how PyAV writes a kind of file: container, codec and pixels of the pictures, codec and rate of the sound.

    `here` gives further options, of this processor. `even` formats halve the resolution of colour, so that width and
    height must be even.
    """

    container: str
    video: str
    pixels: str
    options: Mapping[str, str]
    muxing: Mapping[str, str]
    audio: str | None = None
    audio_rate: int | None = None
    even: bool = True
    here: Callable[[], Mapping[str, str]] = dict


def _below_avx512() -> dict[str, str]:
    """Keep x264 to AVX2 where the processor has AVX-512.

    Its AVX-512 code for the macroblock tree (x264 165) reads what nothing has written where the width is no multiple of
    128 pixels: the same frames came to other bytes one time in a hundred, and with each MALLOC_PERTURB_ of glibc.
    """
    import torch  # takes seconds, and is there where frames are drawn

    return {"x264-params": "asm=AVX2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}


# bitexact leaves out dates and random names, so that the same frames give the same file.
MP4 = Format(
    "mp4",
    "libx264",
    "yuv420p",
    {"crf": "18", "preset": "medium"},
    {"movflags": "+faststart", "fflags": "+bitexact"},
    "aac",
    here=_below_avx512,
)
WEBM = Format(
    "webm",
    "libvpx-vp9",
    "yuv420p",
    {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    {"fflags": "+bitexact"},
    "libopus",
    48000,
)
WEBP = Format("webp", "libwebp_anim", "bgra", {"quality": "90", "lossless": "0"}, {"loop": "0"}, even=False)


def need_av(path: Path) -> None:
    """Raise ReverieError where PyAV is not installed."""
    if find_spec("av") is None:
        raise ReverieError(f"'{path}' needs PyAV; pip install 'reverie[film]'")


@contextmanager
def ffmpeg_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn FFmpeg's errors about a file into ReverieErrors of one line."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        by_system = isinstance(error, OSError)
        reason = "no film that is known, or damaged" if doing == "read" and not by_system else reason_of(error)
        raise ReverieError(f"cannot {doing} '{path}': {reason}") from error


class StreamWriter:
    """Write a film through PyAV, holding what its encoder looks ahead.

    Colours follow BT.709, and the file says so. An odd edge is repeated where the format wants even sizes.
    """

    def __init__(
        self,
        form: Format,
        path: Path,
        size: tuple[int, int],
        fps: Fraction,
        texts: Mapping[str, str],
        sound: Waveform | None,
    ) -> None:
        import av

        self._form, self._path, self._fps, self._texts, self._count = form, path, fps, texts, 0
        self._size = tuple(edge + edge % 2 for edge in size) if form.even else size
        with ffmpeg_errors(path, "write"):
            self._out: OutputContainer = av.open(str(path), "w", format=form.container, options=dict(form.muxing))
            for name, text in texts.items():
                self._out.metadata[COMMENT if name == REQUEST else name] = text
            self._pictures = _stream(self._out, form.video, fps, {**form.options, **form.here()})
            self._pictures.width, self._pictures.height = self._size
            self._pictures.pix_fmt = form.pixels
            self._pictures.codec_context.thread_count = THREADS
            if form.even:
                for name, value in BT709.items():
                    setattr(self._pictures.codec_context, name, value)
            self._sound = None if sound is None else _SoundTrack(self._out, form, sound)

    def add(self, picture: Image.Image) -> None:
        """Write a frame, an RGB picture of the film's size, and the sound that goes with it."""
        import av

        frame: Any = av.VideoFrame.from_ndarray(self._pixels(picture), format="rgb24")
        if self._form.even:
            frame = frame.reformat(format=self._form.pixels, dst_colorspace=1, dst_color_range=1)
        else:
            frame = frame.reformat(format=self._form.pixels)
        frame.pts, frame.time_base = self._count, 1 / self._fps
        self._count += 1
        with ffmpeg_errors(self._path, "write"):
            self._out.mux(self._pictures.encode(frame))
            if self._sound is not None:
                self._sound.until(float(self._count / self._fps))

    def _pixels(self, picture: Image.Image) -> np.ndarray:
        pixels, (width, height) = np.asarray(picture), self._size
        padding = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
        return np.ascontiguousarray(np.pad(pixels, padding, mode="edge"))

    def finish(self) -> None:
        """Write what the encoders still hold, and close the file."""
        with ffmpeg_errors(self._path, "write"):
            self._out.mux(self._pictures.encode(None))
            if self._sound is not None:
                self._sound.finish()
            self._out.close()
        if self._form is WEBP and self._texts:
            _add_exif(self._path, self._size, self._texts)

    def abandon(self) -> None:
        """Close the file as it is."""
        with ffmpeg_errors(self._path, "write"):
            self._out.close()


class _SoundTrack:
    """Write a sound next to the pictures, piece by piece, so that neither waits for the other."""

    def __init__(self, out: OutputContainer, form: Format, sound: Waveform) -> None:
        samples = np.asarray(sound.samples, dtype=np.float32)
        self._samples = samples if len(samples) <= 2 else samples.mean(axis=0, keepdims=True)
        self._rate, self._at, self._out = int(sound.rate), 0, out
        self._layout = "mono" if len(self._samples) == 1 else "stereo"
        self._stream = _stream(out, form.audio or "", form.audio_rate or _aac_rate(self._rate), {})
        self._stream.layout = self._layout

    def until(self, seconds: float) -> None:
        """Write the sound up to a time, or to its own end."""
        import av

        end = min(round(seconds * self._rate), self._samples.shape[1])
        if end <= self._at:
            return
        piece = np.ascontiguousarray(self._samples[:, self._at : end].clip(-1, 1))
        frame: Any = av.AudioFrame.from_ndarray(piece, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._at, Fraction(1, self._rate)
        self._at = end
        self._out.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._out.mux(self._stream.encode(None))


def _stream(out: OutputContainer, codec: str, rate: Fraction | int, options: Mapping[str, str]) -> Any:
    return out.add_stream(codec, rate=rate, options=dict(options))


def _aac_rate(rate: int) -> int:
    """Return the sound's own rate where AAC in a browser knows it, else 48 kHz."""
    return rate if rate in (22050, 24000, 32000, 44100, 48000) else 48000


def _add_exif(path: Path, size: tuple[int, ...], texts: Mapping[str, str]) -> None:
    """Append a chunk of EXIF, which FFmpeg does not write, to a WebP file.

    The file is RIFF: chunks of a four-letter name, a length and that many bytes, padded to even. The first, VP8X, tells
    by its flags what others there are; a film of one frame is written without it.
    """
    chunks = path.read_bytes()[12:]
    if not chunks.startswith(b"VP8X"):
        edges = b"".join((edge - 1).to_bytes(3, "little") for edge in size)
        chunks = _chunk(b"VP8X", bytes(4) + edges) + chunks
    flags = bytes([chunks[8] | VP8X_EXIF])
    body = b"WEBP" + chunks[:8] + flags + chunks[9:] + _chunk(b"EXIF", exif_texts(texts).tobytes())
    path.write_bytes(_chunk(b"RIFF", body))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
