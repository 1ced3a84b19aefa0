"""The shelf: what clients upload, kept once under the SHA-256 of its content, and told by content, not by name."""

from __future__ import annotations

import hashlib
import io
import json
import mimetypes
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import atomic_write
from reverie.media.pictures import DAMAGED
from reverie.requests.references import DATA_URL, content_of, name_in
from reverie.server.settings import Settings

FILE_URL = "/api/files/"
PILLOW_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
PILLOW_SUFFIXES |= {"TIFF": ".tif", "AVIF": ".avif"}
# Sounds and films by their first bytes: at which offset, what, and the suffix that their readers know them by.
SIGNATURES = (
    (8, b"WAVE", ".wav"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (4, b"ftyp", ".mp4"),
    (0, b"\x1a\x45\xdf\xa3", ".webm"),
)
INPUT_PIXELS = 16  # times the pixels that may be drawn, a picture that is given may have
DAY = 86_400.0


@dataclass(frozen=True)
class Shelf:
    """Keep what clients send in a server's folder of uploads, within its limits."""

    settings: Settings

    def add(self, data: bytes) -> Path:
        """Keep a picture, a sound or a film. Raises ReverieError where it is none, or larger than is allowed."""
        path = self.settings.uploads / f"{hashlib.sha256(data).hexdigest()[:40]}{self._suffix(data)}"
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(data)
        return path

    def _suffix(self, data: bytes) -> str:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                size, suffix = picture.size, PILLOW_SUFFIXES.get(picture.format or "")
        except DAMAGED as error:
            if isinstance(error, Image.DecompressionBombError):
                raise ReverieError("the picture is too large to be opened") from error
            size, suffix = (0, 0), None
        if size[0] * size[1] > (most := INPUT_PIXELS * self.settings.limits.pixels):
            raise ReverieError(f"the picture has {size[0]}x{size[1]} pixels; give one of at most {most}")
        if suffix is None:
            found = (end for at, start, end in SIGNATURES if data[at : at + len(start)] == start)
            suffix = next(found, ".mp3" if data[:1] == b"\xff" and data[1:2] >= b"\xe0" else None)
        if suffix is None:
            raise ReverieError("the file is neither a picture nor a sound or film that is known here")
        return suffix

    def replace_content(self, value: Any, keep: bool = True) -> Any:
        """Return JSON with the file's name in the place of each data URL, whose content is kept.

        Where the URL says a name, it is a record of both. Pictures that are not to be kept are looked at alone.
        """
        if isinstance(value, dict):
            return {name: self.replace_content(one, keep) for name, one in value.items()}
        if isinstance(value, list):
            return [self.replace_content(one, keep) for one in value]
        if not isinstance(value, str) or not value.startswith(DATA_URL):
            return value
        data = content_of(value)
        if not keep and self._suffix(data) in PILLOW_SUFFIXES.values():
            return value
        path, name = self.add(data).name, name_in(value)
        return path if name is None else {"path": path, "name": name, "sha256": hashlib.sha256(data).hexdigest()}

    def find(self, name: str) -> Path | None:
        """Return the upload, or the result, of a name; None where there is none."""
        if not re.fullmatch(r"[\w-]+(\.\w+)?", name):
            return None
        places = (folder / name for folder in (self.settings.outputs, self.settings.uploads))
        return next((path for path in places if path.is_file()), None)

    def sweep(self, is_named: Callable[[str], bool]) -> None:
        """Remove what was uploaded over a day ago and no job names, and the oldest of that beyond the limit."""
        files = sorted(self.settings.uploads.iterdir(), key=lambda path: -path.stat().st_mtime)
        total = 0
        for path in files:
            total += path.stat().st_size
            old = time.time() - path.stat().st_mtime > DAY
            if (old or total > self.settings.limits.uploads) and not is_named(path.name):
                path.unlink(missing_ok=True)


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object that a text is, or None where it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def describe_files(paths: Iterator[Path]) -> list[dict[str, Any]]:
    """Tell clients of files: name, address, media type and bytes."""
    return [
        {"name": path.name, "url": FILE_URL + quote(path.name), "type": media_type(path), "bytes": path.stat().st_size}
        for path in paths
        if path.is_file()
    ]


def media_type(path: Path) -> str:
    """Return the media type of a file's name."""
    own = {".webp": "image/webp", ".avif": "image/avif", ".flac": "audio/flac"}.get(path.suffix)
    return own or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
