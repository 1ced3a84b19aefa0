"""How is any picture of a captioned collection read, in any order? From webdataset shards or from a folder.

Shards are indexed by reading the headers of their tars; a picture is then one read at a known place, so item
1,234,567 costs no reading of those before it. What a header or a list says is data: nothing outside is opened.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from reverie.data.shards import PICTURES
from reverie.errors import ReverieError

LISTS = ("metadata.jsonl",)  # as Hugging Face's imagefolder: {"file_name": "a.jpg", "text": "a bear"} a line
CAPTION_KEYS = ("text", "caption")
OPEN_SHARDS = 64


class Captioned(Protocol):
    """A collection of pictures with captions, numbered from 0."""

    def __len__(self) -> int: ...

    def caption(self, index: int) -> str:
        """Return a caption."""

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB. Raises ReverieError, naming it, where it cannot be read."""


def open_captioned(path: str | Path) -> Captioned:
    """Open a folder of shards, one shard, or a folder of pictures with captions.

    Captions of a folder stand in `NAME.txt` beside `NAME.jpg`, or all of them in `metadata.jsonl`. Raises ReverieError
    where there is no captioned picture, or a shard is damaged.
    """
    path = Path(path)
    shards = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    found: Captioned = Shards(shards) if shards else Folder(path)
    if not len(found):
        raise ReverieError(
            f"no pictures with captions in {path}; give a folder of .tar shards, or of pictures, each with a .txt"
        )
    return found


class Part(NamedTuple):
    """Say where in a shard a file lies, in bytes."""

    offset: int
    size: int


class Shards:
    """Read tars in img2dataset's layout: members of one key stand together, KEY.jpg and KEY.txt among them.

    32 bytes a pair are kept in memory: 13 GB for LAION-400M.
    """

    def __init__(self, paths: list[Path]) -> None:
        tables = [np.array(list(_pairs(path)), np.int64).reshape(-1, 4) for path in paths]
        self.paths, self.ends = paths, np.cumsum([len(table) for table in tables])
        self.places = np.concatenate(tables)  # offset and size of the picture, offset and size of the caption

    def __len__(self) -> int:
        return len(self.places)

    def caption(self, index: int) -> str:
        """Return a caption."""
        return _bytes(self._shard(index), Part(*self.places[index, 2:].tolist())).decode("utf-8", "replace")

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB. Raises ReverieError where it is damaged."""
        shard, part = self._shard(index), Part(*self.places[index, :2].tolist())
        return _decoded(io.BytesIO(_bytes(shard, part)), f"at byte {part.offset} of {shard}")

    def _shard(self, index: int) -> Path:
        return self.paths[int(np.searchsorted(self.ends, index, side="right"))]


class Folder:
    """Read the pictures below a folder that have captions, in the order of their names."""

    def __init__(self, path: Path) -> None:
        first = itemgetter(0)
        self.entries: list[tuple[Path, str | Path]] = sorted(_listed(path), key=first) or sorted(
            _beside(path), key=first
        )

    def __len__(self) -> int:
        return len(self.entries)

    def caption(self, index: int) -> str:
        """Return a caption."""
        caption = self.entries[index][1]
        return caption if isinstance(caption, str) else caption.read_text(encoding="utf-8", errors="replace").strip()

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB. Raises ReverieError where it is damaged."""
        file = self.entries[index][0]
        return _decoded(file, str(file))


def _pairs(path: Path) -> Iterator[tuple[int, int, int, int]]:
    """Find the captioned pictures of a shard by the headers of its members."""
    try:
        with tarfile.open(path, "r:") as tar:  # not compressed, or places in it mean nothing
            whole = path.stat().st_size
            key, parts = "", dict[str, Part]()
            for member in tar:
                stem, _, extension = member.name.rpartition("/")[2].partition(".")
                if stem != key:
                    yield from _pair(parts)
                    key, parts = stem, {}
                if member.isreg() and member.sparse is None and member.offset_data + member.size <= whole:
                    parts[extension.lower()] = Part(member.offset_data, member.size)
            yield from _pair(parts)
    except (tarfile.TarError, OSError) as error:
        raise ReverieError(f"the shard {path} is damaged or compressed: {error}; write it again") from error


def _pair(parts: dict[str, Part]) -> Iterator[tuple[int, int, int, int]]:
    form = next((form for form in PICTURES if form in parts), None)
    if form is not None and "txt" in parts:
        yield (*parts[form], *parts["txt"])


def _listed(path: Path) -> Iterator[tuple[Path, str | Path]]:
    """Read the pictures that a list names, below its folder alone."""
    for file in (path / name for name in LISTS if (path / name).is_file()):
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                told = json.loads(line)
                caption = next(told[key] for key in CAPTION_KEYS if isinstance(told.get(key), str))
                picture = path / told["file_name"]
            except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
                raise ReverieError(f'{file}, line {number}: write {{"file_name": "a.jpg", "text": "..."}}') from error
            if not picture.resolve().is_relative_to(path.resolve()):
                raise ReverieError(f"{file}, line {number}: {told['file_name']!r} lies outside; name files below it")
            yield picture, caption


def _beside(path: Path) -> Iterator[tuple[Path, str | Path]]:
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower().removeprefix(".") in PICTURES and file.with_suffix(".txt").is_file():
                yield file, file.with_suffix(".txt")


@lru_cache(OPEN_SHARDS)
def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _bytes(shard: Path, part: Part) -> bytes:
    return _mapped(shard)[part.offset : part.offset + part.size]


def _decoded(file: io.BytesIO | Path, name: str) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return opened.convert("RGB")
    except Exception as error:  # decoders of damaged files raise SyntaxError, struct.error, MemoryError and others
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ReverieError(f"cannot read the picture {name}: {reason}") from error
