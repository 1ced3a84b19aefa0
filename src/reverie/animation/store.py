"""Where do frames wait until their film is complete? In a folder under a key of everything that determines them.

A film that broke off, by Ctrl-C, `kill -9` or a power cut, goes on with the frames that it had.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image

from reverie.errors import ReverieError
from reverie.generate.cache import FOLDER, folder

KEPT = 2 * 1024**3  # bytes of earlier films' frames that stay, so that writing another file of one costs nothing
JOURNAL, LOCK = "journal.jsonl", "lock"


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
        self._lock: BinaryIO | None = None

    def __enter__(self) -> FrameStore:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder / LOCK)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ReverieError(
                f"cannot keep frames in '{self.folder}': {reason}; {FOLDER} names another place"
            ) from error
        if self._lock is None:
            raise ReverieError(f"another process is making this film (its frames: '{self.folder}'); wait for its end")
        self._sums = self._read_journal()
        os.utime(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
            _replace(self.folder / name, data)
            sums[name] = zlib.crc32(data)
        with (self.folder / JOURNAL).open("ab") as journal:
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
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and all(isinstance(total, int) for total in told.values()):
                sums |= told
        return sums


def _name(place: float) -> str:
    """Name the file of a place: its bits, as two places may differ in the last one."""
    return f"{float(place).hex()}.png"


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _locked(path: Path) -> BinaryIO | None:
    """Open a file that no other process holds, or return None; the system lets go of it however this process ends."""
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows: without a lock
        pass
    except BlockingIOError:
        file.close()
        return None
    return file


def cache() -> Path:
    """Return the folder of all films' frames: within REVERIE_CACHE, else within the user's cache."""
    return folder() / "frames"


def prune(frames: Path, kept: int = KEPT) -> None:
    """Remove the frames of films that nobody is making, the oldest first, until no more than `kept` bytes are left."""
    films = sorted((film for film in frames.iterdir() if film.is_dir()), key=lambda film: film.stat().st_mtime)
    sizes = {film: sum(file.stat().st_size for file in film.iterdir() if file.is_file()) for film in films}
    left = sum(sizes.values())
    for film in films:
        if left <= kept:
            return
        lock = _locked(film / LOCK)
        if lock is not None:
            shutil.rmtree(film, ignore_errors=True)
            lock.close()
            left -= sizes[film]
