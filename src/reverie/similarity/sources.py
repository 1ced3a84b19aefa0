"""Where do the pictures of an index lie? In files below a folder, and in webdataset shards."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import READABLE

SHARD = ".tar"


class Place(NamedTuple):
    """Say where a picture lies: `size` bytes of a file from `offset`.

    `name` is its path below the source, in a shard that of the shard and the member's; `stamp` is another one when the
    file was written anew.
    """

    name: str
    file: str
    offset: int
    size: int
    stamp: str


class Skipped(NamedTuple):
    """Name what could not be read, and say why."""

    name: str
    reason: str


def find_places(source: str | Path) -> tuple[list[Place], list[Skipped]]:
    """Find all pictures below a folder, or in one shard, sorted by name; damaged shards are listed beside.

    Raises ReverieError where there are none.
    """
    root = Path(source)
    if not root.exists():
        raise ReverieError(f"no pictures at '{source}': there is no such folder or shard")
    places: list[Place] = []
    skipped: list[Skipped] = []
    for file in sorted(_files(root)):
        name = file.relative_to(base_of(root)).as_posix()
        try:
            places.extend(_members(file, name) if file.suffix.lower() == SHARD else [_whole(file, name)])
        except (tarfile.TarError, OSError, ValueError) as error:
            skipped.append(Skipped(name, reason_of(error)))
    if not places:
        listed = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
        raise ReverieError(f"no pictures in '{source}'{listed}; give a folder of pictures or of .tar shards")
    return sorted(places), skipped


def base_of(source: Path) -> Path:
    """Return the folder that names are relative to."""
    return source if source.is_dir() else source.parent


def read_picture(base: Path, place: Place) -> Image.Image:
    """Read a picture as RGB. Raises ReverieError, naming it, where it is gone or damaged."""
    try:
        return open_place(base, place)
    except Exception as error:  # decoders of damaged files raise SyntaxError, struct.error, MemoryError and others
        raise ReverieError(f"cannot read the picture {place.name}: {reason_of(error)}") from error


def open_place(base: Path, place: Place) -> Image.Image:
    """Read a picture as RGB. Raises whatever the system, or the decoder of a damaged one, raises."""
    with (base / place.file).open("rb") as file:
        file.seek(place.offset)
        return decoded(file.read(place.size))


def decoded(content: bytes) -> Image.Image:
    """Decode a picture's file as RGB. Raises whatever the decoder of a damaged one raises."""
    with Image.open(io.BytesIO(content)) as opened:
        return opened.convert("RGB")


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and file.suffix.lower() in READABLE | {SHARD} and file.is_file():
                yield file


def _whole(file: Path, name: str) -> Place:
    told = file.stat()
    return Place(name, name, 0, told.st_size, f"{told.st_size}-{told.st_mtime_ns}")


def _members(shard: Path, name: str) -> Iterator[Place]:
    """Find the pictures of a shard by its headers. A shard that is cut off raises before it gives any of them."""
    told = shard.stat()
    found = []
    with tarfile.open(shard, "r:") as tar:  # not compressed, or places in it mean nothing
        for member in tar:
            if not member.isreg() or member.sparse is not None or Path(member.name).suffix.lower() not in READABLE:
                continue
            if member.offset_data + member.size > told.st_size:
                raise tarfile.ReadError("the shard is cut off")
            stamp = f"{told.st_size}-{told.st_mtime_ns}-{member.offset_data}"
            found.append(Place(f"{name}/{member.name}", name, member.offset_data, member.size, stamp))
    yield from found


def reason_of(error: Exception) -> str:
    """Say in a few words what is wrong with a file, the same words each time."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r" *<_io\.\w+ object at 0x\w+>", "", str(error))  # an address, which differs from run to run
    return " ".join(text.split())[:120] or type(error).__name__
