"""The frame store: frames of an unfinished film, in a folder under the key of all that determines them.

A film that broke off, by Ctrl-C, `kill -9` or a power cut, goes on with the frames that it had.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import CACHE_VARIABLE, InUse, atomic_write, cache_folder, lock_folder, unwritable

KEPT = 2 * 1024**3  # bytes of earlier films' frames that stay, so that writing another file of one costs nothing
JOURNAL = "journal.jsonl"


class Store(Protocol):
    """Keep the frames of one film by their place on its path."""

    def get(self, place: float) -> Image.Image | None:
        """Return a frame drawn before, to the bit, or None where it is not there."""

    def put(self, drawn: Mapping[float, Image.Image]) -> None:
        """Keep frames that were drawn together: all of them are there afterwards, or none."""


class FrameStore:
    """Keep frames as PNG in a folder.

    A journal names the frames of each batch in one line, which is written after them: a batch without its line is not
    there, so that a film that goes on cuts the rest into the same batches as one that was never interrupted. Each line
    holds the files' sums; a file that does not fit its sum is drawn again.

    Use it as a context manager: meanwhile no other process makes the same film.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._sums: dict[str, int] = {}
        self._lock = ExitStack()

    def __enter__(self) -> FrameStore:
        try:
            self._lock.enter_context(lock_folder(self.folder, "making a film of the frames in"))
        except InUse:
            raise
        except ReverieError as error:
            warnings.warn(
                f"frames are not kept, so a film that breaks off begins anew: {error}; {CACHE_VARIABLE} names another "
                "folder for them",
                stacklevel=2,
            )
            self.folder = Path(self._lock.enter_context(TemporaryDirectory(prefix="reverie-")))
        self._sums = self._read_journal()
        os.utime(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def __len__(self) -> int:
        return len(self._sums)

    def __contains__(self, place: object) -> bool:
        return isinstance(place, float | int) and _name(place) in self._sums

    def get(self, place: float) -> Image.Image | None:
        """Return a frame drawn before, to the bit, or None where it is not there."""
        name = _name(place)
        if name not in self._sums:
            return None
        try:
            data = (self.folder / name).read_bytes()
        except OSError:
            data = b""
        if zlib.crc32(data) != self._sums[name]:
            del self._sums[name]
            return None
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")

    def put(self, drawn: Mapping[float, Image.Image]) -> None:
        """Keep frames that were drawn together: all of them are there afterwards, or none."""
        sums = {}
        for place, picture in drawn.items():
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG", compress_level=1)
            name, data = _name(place), buffer.getvalue()
            with atomic_write(self.folder / name) as temporary:
                temporary.write_bytes(data)
            sums[name] = zlib.crc32(data)
        path = self.folder / JOURNAL
        with unwritable(path), path.open("ab") as journal:
            journal.write(json.dumps(sums).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._sums |= sums

    def _read_journal(self) -> dict[str, int]:
        """Read the complete lines, and cut off one that broke off, so that the next begins on its own."""
        path = self.folder / JOURNAL
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        sums: dict[str, int] = {}
        for line in whole.splitlines():
            try:
                batch = json.loads(line)
            except ValueError:
                continue
            if isinstance(batch, dict) and all(isinstance(total, int) for total in batch.values()):
                sums |= batch
        return sums


def _name(place: float) -> str:
    """Name the file of a place: its bits, as two places may differ in the last one."""
    return f"{float(place).hex()}.png"


def cache() -> Path:
    """Return the folder of all films' frames, within the user's cache directory."""
    return cache_folder() / "frames"


def prune(frames: Path, kept: int = KEPT) -> None:
    """Remove the frames of films that nobody is making, the oldest first, until no more than `kept` bytes are left."""
    films = sorted((film for film in frames.glob("*") if film.is_dir()), key=lambda film: film.stat().st_mtime)
    sizes = {film: sum(file.stat().st_size for file in film.iterdir() if file.is_file()) for film in films}
    left = sum(sizes.values())
    for film in films:
        if left <= kept:
            return
        with suppress(InUse), lock_folder(film):
            shutil.rmtree(film, ignore_errors=True)
            left -= sizes[film]
