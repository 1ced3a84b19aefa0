"""The index of a collection's embeddings on disk: append-only, memory-mapped, crash-safe.

`index.json` says how many rows of `vectors-G.f32` and how many bytes of `pictures-G.jsonl` count. Both files are only
ever appended to, and the numbers are replaced last: what an interrupted run left behind them is not there. Line by
line the journal says of a picture which row is its own, that it could not be read, or that it is gone; the last word
counts. `G` is the generation: a new one is written when a quarter of the rows are dead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from reverie.errors import ReverieError
from reverie.files import SHARD, TAR_ERRORS, reason_of, tar_members, unwritable, write_text
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


VERSION = 1
HEADER = "index.json"


@dataclass(frozen=True, kw_only=True)
class IndexHeader:
    """Say whose embeddings these are, and how much of the files counts."""

    model: str
    identity: str
    width: int
    source: str
    generation: int = 0
    rows: int = 0
    journal: int = 0
    version: int = VERSION


@dataclass(frozen=True)
class IndexEntry:
    """Tell of a picture: where it lies, and its row, or why it has none."""

    place: PicturePlace
    row: int | None = None
    reason: str = ""

    def line(self) -> str:
        """Write it as a line of the journal."""
        return json.dumps({**self.place._asdict(), "row": self.row, "reason": self.reason})


@dataclass(frozen=True, eq=False)
class Index:
    """Hold an index as it was when opened; `entries` by the names of the pictures."""

    folder: Path
    header: IndexHeader
    entries: Mapping[str, IndexEntry] = field(repr=False)
    vectors: Float[np.ndarray, "rows width"] = field(repr=False)
    """The embeddings, mapped into memory; those of dead rows too."""

    @cached_property
    def by_row(self) -> Mapping[int, IndexEntry]:
        """Find the picture of a row; dead rows have none."""
        return {entry.row: entry for entry in self.entries.values() if entry.row is not None}

    @property
    def skipped(self) -> list[Skipped]:
        """List what could not be read."""
        return [Skipped(name, entry.reason) for name, entry in self.entries.items() if entry.row is None]

    def picture(self, entry: IndexEntry) -> Image.Image:
        """Read a picture of the collection. Raises ReverieError where it is gone or damaged."""
        return read_picture(base_of(Path(self.header.source)), entry.place)

    def __len__(self) -> int:
        """Count the pictures that can be found."""
        return len(self.by_row)


def open_index(folder: str | Path) -> Index:
    """Open an index. Raises ReverieError where there is none, or its files are damaged."""
    folder = Path(folder)
    try:
        header = IndexHeader(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ReverieError(f"no index in '{folder}'; make one: reverie index pictures/ -o {folder}") from error
    except (OSError, ValueError, TypeError) as error:
        raise ReverieError(f"'{folder / HEADER}' is damaged: {error}; delete the folder and index anew") from error
    if header.version != VERSION:
        raise ReverieError(f"'{folder}' is an index of version {header.version}, not {VERSION}; index anew elsewhere")
    try:
        return Index(folder, header, _entries(folder, header), _map(folder, header))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReverieError(f"the index '{folder}' is damaged: {error}; delete the folder and index anew") from error


def vectors_file(folder: Path, header: IndexHeader) -> Path:
    """Name the file of an index's rows."""
    return folder / f"vectors-{header.generation}.f32"


def journal_file(folder: Path, header: IndexHeader) -> Path:
    """Name the file of an index's pictures."""
    return folder / f"pictures-{header.generation}.jsonl"


def _map(folder: Path, header: IndexHeader) -> Float[np.ndarray, "rows width"]:
    shape = (header.rows, header.width)
    if not header.rows:
        return np.zeros(shape, np.float32)  # nothing cannot be mapped
    return np.memmap(vectors_file(folder, header), np.float32, "r", shape=shape)


def _entries(folder: Path, header: IndexHeader) -> dict[str, IndexEntry]:
    if not header.journal:
        return {}
    with journal_file(folder, header).open("rb") as file:
        text = file.read(header.journal)
    if len(text) < header.journal:
        raise ValueError("its journal is shorter than it should be")
    entries: dict[str, IndexEntry] = {}
    for line in text.splitlines():
        record = json.loads(line)
        if record.get("gone"):
            entries.pop(record["name"], None)
            continue
        row, reason = record.pop("row"), record.pop("reason")
        if row is not None and not 0 <= row < header.rows:
            raise ValueError(f"row {row} of {record['name']} is beyond its end")
        entries[record["name"]] = IndexEntry(PicturePlace(**record), row, reason)
    return entries


DEAD_SHARE = 0.25  # of all rows: beyond that an index is written anew
BLOCK = 65_536  # rows that are held in memory then


class IndexWriter:
    """Append to an index; what stands behind the numbers of the header is overwritten."""

    def __init__(self, folder: Path, header: IndexHeader) -> None:
        """Begin where `header` ends; the folder is there."""
        self.folder, self.header = folder, header

    def add(self, entries: Iterable[IndexEntry], blocks: Iterable[Float[np.ndarray, "n width"]]) -> None:
        """Add pictures. Those that could be read, which have no reason, get the rows of the blocks, in order."""
        rows = count(self.header.rows)
        self._append([replace(it, row=None if it.reason else next(rows)).line() for it in entries], blocks)

    def forget(self, names: Iterable[str]) -> None:
        """Say that pictures are gone."""
        self._append([json.dumps({"name": name, "gone": True}) for name in names], [])

    def _append(self, lines: Sequence[str], blocks: Iterable[Float[np.ndarray, "n width"]]) -> None:
        header, row = self.header, 4 * self.header.width
        content = (np.ascontiguousarray(block, np.float32).tobytes() for block in blocks)
        rows = _write_blocks(vectors_file(self.folder, header), row * header.rows, content) // row
        journal = _write_blocks(
            journal_file(self.folder, header), header.journal, (f"{line}\n".encode() for line in lines)
        )
        self.header = replace(header, rows=rows, journal=journal)
        write_text(self.folder / HEADER, json.dumps(asdict(self.header), indent=1), sync=True)


def compact(index: Index) -> None:
    """Write the rows that live as a new generation, if many are dead; the old one goes once the new one counts."""
    old = index.header
    if old.rows - len(index) <= DEAD_SHARE * old.rows:
        return
    rows = sorted(index.by_row)
    alive = [index.by_row[row] for row in rows]
    unread = [entry for entry in index.entries.values() if entry.reason]
    blocks = (index.vectors[rows[start : start + BLOCK]] for start in range(0, len(rows), BLOCK))
    IndexWriter(index.folder, replace(old, generation=old.generation + 1, rows=0, journal=0)).add(
        alive + unread, blocks
    )
    for file in (vectors_file(index.folder, old), journal_file(index.folder, old)):
        with suppress(OSError):  # Windows keeps what is mapped
            file.unlink()


def _write_blocks(path: Path, place: int, blocks: Iterable[bytes]) -> int:
    """Write blocks from a place on, where the file then ends; return its size."""
    with unwritable(path), path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(place)
        file.seek(place)
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
