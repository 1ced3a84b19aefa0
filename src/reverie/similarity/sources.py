"""The pictures that an index covers: files below a folder, and members of webdataset shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import SHARD, TAR_ERRORS, reason_of, tar_members
from reverie.media.pictures import READABLE, decode, read_stored, to_rgb


class PicturePlace(NamedTuple):
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


def find_places(source: str | Path) -> tuple[list[PicturePlace], list[Skipped]]:
    """Find all pictures below a folder, or in one shard, sorted by name; damaged shards are listed beside.

    Raises ReverieError where there are none.
    """
    root = Path(source)
    if not root.exists():
        raise ReverieError(f"no pictures at '{source}': there is no such folder or shard")
    places: list[PicturePlace] = []
    skipped: list[Skipped] = []
    for file in sorted(_files(root)):
        name = file.relative_to(base_of(root)).as_posix()
        try:
            places.extend(_members(file, name) if file.suffix.lower() == SHARD else [_whole(file, name)])
        except TAR_ERRORS as error:
            skipped.append(Skipped(name, reason_of(error)))
    if not places:
        listed = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
        raise ReverieError(f"no pictures in '{source}'{listed}; give a folder of pictures or of .tar shards")
    return sorted(places), skipped


def base_of(source: Path) -> Path:
    """Return the folder that names are relative to."""
    return source if source.is_dir() else source.parent


def read_picture(base: Path, place: PicturePlace) -> Image.Image:
    """Read a picture as RGB, upright and on white. Raises ReverieError, naming it, where it is gone or damaged."""
    return to_rgb(decode(_content(base, place), f"the picture {place.name}"))


def read_place(base: Path, place: PicturePlace) -> Image.Image:
    """Read a picture as CLIP's references do, neither turned nor on white. Raises ReverieError."""
    return read_stored(_content(base, place), f"the picture {place.name}").convert("RGB")


def _content(base: Path, place: PicturePlace) -> bytes:
    try:
        with (base / place.file).open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)
    except OSError as error:
        raise ReverieError(f"cannot read the picture {place.name}: {reason_of(error)}") from error


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


def _whole(file: Path, name: str) -> PicturePlace:
    state = file.stat()
    return PicturePlace(name, name, 0, state.st_size, f"{state.st_size}-{state.st_mtime_ns}")


def _members(shard: Path, name: str) -> list[PicturePlace]:
    """Find the pictures of a shard by its headers. Raises one of TAR_ERRORS, also where it is cut off."""
    state = shard.stat()
    found = []
    for member in tar_members(shard):
        if Path(member.name).suffix.lower() not in READABLE:
            continue
        if member.offset + member.size > state.st_size:
            raise EOFError("the shard is cut off")
        stamp = f"{state.st_size}-{state.st_mtime_ns}-{member.offset}"
        found.append(PicturePlace(f"{name}/{member.name}", name, member.offset, member.size, stamp))
    return found
