"""The index of a collection's embeddings on disk: append-only, memory-mapped, crash-safe.

`index.json` says how many rows of `vectors-G.f32` and how many bytes of `pictures-G.jsonl` count. Both files are only
ever appended to, and the numbers are replaced last: what an interrupted run left behind them is not there. Line by
line the journal says of a picture which row is its own, that it could not be read, or that it is gone; the last word
counts. `G` is the generation: a new one is written when a quarter of the rows are dead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from reverie.errors import ReverieError
from reverie.similarity.sources import Place, Skipped, base_of, read_picture

VERSION = 1
HEADER = "index.json"


@dataclass(frozen=True, kw_only=True)
class Header:
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
class Entry:
    """Tell of a picture: where it lies, and its row, or why it has none."""

    place: Place
    row: int | None = None
    reason: str = ""

    def line(self) -> str:
        """Write it as a line of the journal."""
        return json.dumps({**self.place._asdict(), "row": self.row, "reason": self.reason})


@dataclass(frozen=True, eq=False)
class Index:
    """Hold an index as it was when opened; `entries` by the names of the pictures."""

    folder: Path
    header: Header
    entries: Mapping[str, Entry] = field(repr=False)
    vectors: Float[np.ndarray, "rows width"] = field(repr=False)
    """The embeddings, mapped into memory; those of dead rows too."""

    @cached_property
    def by_row(self) -> Mapping[int, Entry]:
        """Find the picture of a row; dead rows have none."""
        return {entry.row: entry for entry in self.entries.values() if entry.row is not None}

    @property
    def skipped(self) -> list[Skipped]:
        """List what could not be read."""
        return [Skipped(name, entry.reason) for name, entry in self.entries.items() if entry.row is None]

    def picture(self, entry: Entry) -> Image.Image:
        """Read a picture of the collection. Raises ReverieError where it is gone or damaged."""
        return read_picture(base_of(Path(self.header.source)), entry.place)

    def __len__(self) -> int:
        """Count the pictures that can be found."""
        return len(self.by_row)


def open_index(folder: str | Path) -> Index:
    """Open an index. Raises ReverieError where there is none, or its files are damaged."""
    folder = Path(folder)
    try:
        header = Header(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ReverieError(f"no index in '{folder}'; make one: reverie index pictures/ -o {folder}") from error
    except (OSError, ValueError, TypeError) as error:
        raise ReverieError(f"'{folder / HEADER}' is damaged: {error}; delete the folder and index anew") from error
    if header.version != VERSION:
        raise ReverieError(f"'{folder}' is an index of version {header.version}, not {VERSION}; index anew elsewhere")
    try:
        return Index(folder, header, _entries(folder, header), _mapped(folder, header))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReverieError(f"the index '{folder}' is damaged: {error}; delete the folder and index anew") from error


def vectors_file(folder: Path, header: Header) -> Path:
    """Name the file of an index's rows."""
    return folder / f"vectors-{header.generation}.f32"


def journal_file(folder: Path, header: Header) -> Path:
    """Name the file of an index's pictures."""
    return folder / f"pictures-{header.generation}.jsonl"


def _mapped(folder: Path, header: Header) -> Float[np.ndarray, "rows width"]:
    shape = (header.rows, header.width)
    if not header.rows:
        return np.zeros(shape, np.float32)  # nothing cannot be mapped
    return np.memmap(vectors_file(folder, header), np.float32, "r", shape=shape)


def _entries(folder: Path, header: Header) -> dict[str, Entry]:
    if not header.journal:
        return {}
    with journal_file(folder, header).open("rb") as file:
        text = file.read(header.journal)
    if len(text) < header.journal:
        raise ValueError("its journal is shorter than it should be")
    entries: dict[str, Entry] = {}
    for line in text.splitlines():
        told = json.loads(line)
        if told.get("gone"):
            entries.pop(told["name"], None)
            continue
        row, reason = told.pop("row"), told.pop("reason")
        if row is not None and not 0 <= row < header.rows:
            raise ValueError(f"row {row} of {told['name']} is beyond its end")
        entries[told["name"]] = Entry(Place(**told), row, reason)
    return entries
