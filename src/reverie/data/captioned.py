"""Random access to a captioned collection and its pictures: webdataset shards, here or elsewhere, a folder, or a list.

Shards are indexed by reading the headers of their tars; a file is then one read at a known place, so item 1,234,567
costs no reading of those before it. What a header or a list says is data: nothing outside is opened.
"""

from __future__ import annotations

import csv
import io
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64
from PIL import Image

from reverie.data.remote import RemoteIndex, RemoteShard, Unreachable, captions_of, is_remote, kept_table, list_shards
from reverie.errors import RequestWarning, ReverieError, warn
from reverie.files import SHARD, TAR_ERRORS, Member, reason_of, tar_members, tar_samples
from reverie.media.pictures import decode, size_of, to_rgb

LISTS = ("metadata.jsonl", "metadata.csv")  # as Hugging Face's: {"file_name": "a.jpg", "text": "a bear"} a line, or CSV
CAPTION_KEYS = ("text", "caption")
OPEN_SHARDS = 64
CONNECTIONS = 16  # shards elsewhere that are read through at once
NAMED = 3  # damaged shards that a note names


class ShardMember(io.BytesIO):
    """Hold a file of a shard; as text it says where it lies."""

    def __init__(self, content: bytes, place: str) -> None:
        super().__init__(content)
        self.place = place

    def __str__(self) -> str:
        """Name it for the reader of an error."""
        return self.place


Content = Path | ShardMember
Shard = Path | RemoteShard


class Located(Protocol):
    """A collection of files with captions, numbered from 0."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> list[object]:
        """Return which files it is made of, and when they were last changed, in plain values."""

    def caption(self, index: int) -> str:
        """Return a caption."""

    def content(self, index: int) -> Content:
        """Return where the file is, or what it holds."""


def locate(path: str | Path, what: str, forms: Sequence[str], default: str = "") -> Located:
    """Find the files that end in one of `forms`: in a folder of shards, one shard, a folder, or a list's folder.

    Shards may lie elsewhere: see `remote.list_shards` for their addresses.

    Captions of a folder stand in `NAME.txt` beside the file, or all of them in `metadata.jsonl` or `metadata.csv`, with
    `file_name` and `text`; such a list may be named itself. A file without a caption has the `default`, or is left out
    where that is empty. `what` names the files in the error. Raises ReverieError where there is none with a caption, or
    a shard or a list is damaged.
    """
    shards = shards_at(path)
    found: Located = Shards(shards, forms) if shards else Folder(Path(path), forms, default)
    if not len(found):
        raise ReverieError(
            f"no {what} with captions in {path}; give a folder of .tar shards, or of {what}, each with a .txt"
        )
    return found


def shards_at(path: str | Path) -> Sequence[Shard]:
    """Find the shards of a folder, by name, or the one given; none where there are none. Raises Unreachable."""
    if is_remote(path):
        return list_shards(str(path))
    path = Path(path)
    return [path] if path.suffix == SHARD else sorted(path.glob(f"*{SHARD}"))


def is_walked(folder: Path) -> bool:
    """Tell whether a collection is all files below a folder, which holds neither shards nor a list at its top."""
    listed = any((folder / name).is_file() for name in LISTS)
    return folder.is_dir() and not listed and not any(folder.glob(f"*{SHARD}"))


class ByteSpan(NamedTuple):
    """Say where in a shard a file lies, in bytes."""

    offset: int
    size: int


class Shards:
    """Read tars in img2dataset's layout: members of one key stand together, KEY.jpg and KEY.txt among them.

    32 bytes a pair are kept in memory: 13 GB for LAION-400M.
    """

    def __init__(self, paths: Sequence[Shard], forms: Sequence[str]) -> None:
        tables = _tables(paths, forms)
        self.kind, self.paths, self.ends = forms[0], paths, np.cumsum([len(table) for table in tables])
        self.places = np.concatenate(tables)  # offset and size of the file, offset and size of the caption

    def __len__(self) -> int:
        return len(self.places)

    @property
    def identity(self) -> list[object]:
        """Return name, size and time of each shard."""
        return [path.identity if isinstance(path, RemoteShard) else _stamp(path, path.parent) for path in self.paths]

    def caption(self, index: int) -> str:
        """Return a caption."""
        shard, part = self._shard(index), ByteSpan(*self.places[index, 2:].tolist())
        return _bytes(captions_of(shard, self.kind) if isinstance(shard, RemoteShard) else shard, part).decode(
            "utf-8", "replace"
        )

    def content(self, index: int) -> ShardMember:
        """Return what the file holds."""
        shard, part = self._shard(index), ByteSpan(*self.places[index, :2].tolist())
        return ShardMember(_bytes(shard, part), f"at byte {part.offset} of {shard}")

    def _shard(self, index: int) -> Shard:
        return self.paths[int(np.searchsorted(self.ends, index, side="right"))]


class Folder:
    """Find the files below a folder that have captions, in the order of their names; or those of a list."""

    def __init__(self, path: Path, forms: Sequence[str], default: str = "") -> None:
        named = path.is_file()
        self.path = path.parent if named else path
        lists = [path] if named else [path / name for name in LISTS if (path / name).is_file()]
        listed = [entry for file in lists for entry in _read_list(file)]
        self.entries: list[tuple[Path, str | Path]] = sorted(
            listed or _beside(self.path, forms, default), key=itemgetter(0)
        )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def identity(self) -> list[object]:
        """Return name, size and time of each file."""
        return [_stamp(file, self.path) for file, _ in self.entries]

    def caption(self, index: int) -> str:
        """Return a caption."""
        caption = self.entries[index][1]
        return caption if isinstance(caption, str) else caption.read_text(encoding="utf-8", errors="replace").strip()

    def content(self, index: int) -> Path:
        """Return where the file is."""
        return self.entries[index][0]


def _tables(paths: Sequence[Shard], forms: Sequence[str]) -> list[Int64[np.ndarray, "n 4"]]:
    """Find the captioned files of shards; warn of those that are damaged, whose rest is left out.

    Raises ReverieError where nothing else is left.
    """
    with ThreadPoolExecutor(CONNECTIONS if any(isinstance(path, RemoteShard) for path in paths) else 1) as pool:
        read = list(pool.map(lambda path: _table(path, forms), paths))
    tables = [table for table, _ in read]
    damaged = [
        (path, len(table), reason) for path, (table, damage) in zip(paths, read, strict=True) for reason in damage
    ]
    if not damaged:
        return tables
    if not any(map(len, tables)):
        path, _, reason = damaged[0]
        raise ReverieError(f"the shard {path} is damaged or compressed: {reason}; give another, or unpack it")
    each = ", ".join(f"{path} after {count} pairs ({reason})" for path, count, reason in damaged[:NAMED])
    rest = ", ..." if len(damaged) > NAMED else ""
    said = f"{len(damaged)} of {len(paths)} shards are damaged or compressed, and their rest is left out: {each}{rest}"
    warn(said, RequestWarning, stacklevel=4)
    return tables


def _table(path: Shard, forms: Sequence[str]) -> tuple[Int64[np.ndarray, "n 4"], list[str]]:
    """Return where the captioned files of a shard lie, and what is wrong with it."""
    damage: list[str] = []
    if isinstance(path, Path):
        places: list[tuple[int, ...]] = []
        try:
            with path.open("rb") as file:
                pairs = _pairs(file, path.stat().st_size, forms, damage)
                places = [member[1:3] + text[1:3] for member, text in pairs]
        except OSError as error:
            damage.append(reason_of(error))
        return np.array(places, np.int64).reshape(-1, 4), damage
    if (table := kept_table(path, forms[0])) is not None:
        return table, damage
    index = RemoteIndex(path)
    with path.open() as file:
        for member, text in _pairs(file, path.size, forms, damage):
            file.seek(text.offset)
            index.add(member.offset, member.size, file.read(text.size))
    return index.keep(forms[0], whole=not damage), damage


def _pairs(shard: IO[bytes], size: int, forms: Sequence[str], damage: list[str]) -> Iterator[tuple[Member, Member]]:
    """Find the captioned files of a shard, and their captions, by the headers of its members."""
    for _, files in tar_samples(_whole_members(shard, size, damage)):
        form = next((form for form in forms if form in files), None)
        if form is not None and "txt" in files:
            yield files[form], files["txt"]


def _whole_members(shard: IO[bytes], size: int, damage: list[str]) -> Iterator[Member]:
    """Read the members of a shard up to the first that is damaged or cut off; add to `damage` what is wrong with it."""
    try:
        for member in tar_members(shard):
            if member.offset + member.size > size:
                damage.append(f"'{member.name}' is cut off")
                return
            yield member
    except Unreachable:
        raise
    except TAR_ERRORS as error:
        damage.append(reason_of(error))


def _read_list(file: Path) -> Iterator[tuple[Path, str | Path]]:
    """Read the files that a list names, below its folder alone."""
    folder = file.parent
    for number, row in _rows(file):
        try:
            caption = next(row[key] for key in CAPTION_KEYS if isinstance(row.get(key), str))
            named = folder / row["file_name"]
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            form = "file_name,text" if file.suffix == ".csv" else '{"file_name": "a.jpg", "text": "..."}'
            raise ReverieError(f"{file}, line {number}: write {form}") from error
        if not named.resolve().is_relative_to(folder.resolve()):
            raise ReverieError(f"{file}, line {number}: {row['file_name']!r} lies outside; name files below it")
        yield named, caption


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Read a list line by line, with the lines' numbers; what cannot be read is None."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")  # spreadsheets write a byte order mark
    if file.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), 2)  # the first line names the columns
        return
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):  # other breaks, as U+2028, stand within strings
        try:
            yield number, json.loads(line)
        except ValueError:
            yield number, None


def _beside(path: Path, forms: Sequence[str], default: str) -> Iterator[tuple[Path, str | Path]]:
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower().removeprefix(".") not in forms:
                continue
            if (caption := file.with_suffix(".txt")).is_file():
                yield file, caption
            elif default:
                yield file, default


def _stamp(file: Path, folder: Path) -> list[object]:
    try:
        stat = file.stat()
    except OSError as error:
        raise ReverieError(f"cannot read {file}: {reason_of(error)}") from error
    return [str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns]


@lru_cache(OPEN_SHARDS)
def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _bytes(shard: Shard, part: ByteSpan) -> bytes:
    if not part.size:  # which a file that is empty has, and cannot be mapped
        return b""
    if isinstance(shard, RemoteShard):
        return shard.read(*part)
    return _map(shard)[part.offset : part.offset + part.size]


PICTURES = ("jpg", "jpeg", "png", "webp")  # suffixes of pictures in shards and folders, the first found is read


class Captioned(Protocol):
    """A collection of pictures with captions, numbered from 0."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> list[object]:
        """Return which files it is made of, and when they were last changed, in plain values."""

    def caption(self, index: int) -> str:
        """Return a caption."""

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB. Raises ReverieError, naming it, where it cannot be read."""

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height of a picture. Raises ReverieError as `picture`."""

    def name(self, index: int) -> str:
        """Return the name of a picture's file, without its suffix."""

    def place(self, index: int) -> str:
        """Say where a picture lies."""


def open_captioned(path: str | Path, default: str = "") -> Captioned:
    """Open a folder of shards, one shard, a folder of pictures with captions, or a list of them (`located.locate`).

    A picture of a folder that has no caption has the `default`, or is left out where that is empty. Raises ReverieError
    where there is no captioned picture, or a shard is damaged.
    """
    return CaptionedPictures(locate(path, "pictures", PICTURES, default))


class CaptionedPictures:
    """Read the pictures of a collection of files."""

    def __init__(self, found: Located) -> None:
        self.found = found
        self.caption = found.caption

    def __len__(self) -> int:
        return len(self.found)

    @property
    def identity(self) -> list[object]:
        """Return which files it is made of, and when they were last changed."""
        return self.found.identity

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB, upright and on white. Raises ReverieError where it is damaged."""
        file = self.found.content(index)
        return to_rgb(decode(file, f"the picture {file}"))

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height of a picture, by its header alone. Raises ReverieError where it is damaged."""
        file = self.found.content(index)
        return size_of(file, f"the picture {file}")

    def place(self, index: int) -> str:
        """Say where a picture lies: its file, or its shard and the byte in it."""
        return str(self.found.content(index))

    def name(self, index: int) -> str:
        """Return the name of a picture's file, without its suffix; in a shard, where it lies."""
        return Path(str(self.found.content(index))).stem
