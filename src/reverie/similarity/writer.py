"""Appending to an index: the numbers that make new rows count are written last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Float

from reverie.files import unwritable, write_text
from reverie.similarity.index import HEADER, Entry, Header, Index, journal_file, vectors_file

DEAD_SHARE = 0.25  # of all rows: beyond that an index is written anew
BLOCK = 65_536  # rows that are held in memory then


class Writer:
    """Append to an index; what stands behind the numbers of the header is overwritten."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Begin where `header` ends; the folder is there."""
        self.folder, self.header = folder, header

    def add(self, entries: Iterable[Entry], blocks: Iterable[Float[np.ndarray, "n width"]]) -> None:
        """Add pictures. Those that could be read, which have no reason, get the rows of the blocks, in order."""
        rows = count(self.header.rows)
        self._append([replace(it, row=None if it.reason else next(rows)).line() for it in entries], blocks)

    def forget(self, names: Iterable[str]) -> None:
        """Say that pictures are gone."""
        self._append([json.dumps({"name": name, "gone": True}) for name in names], [])

    def _append(self, lines: Sequence[str], blocks: Iterable[Float[np.ndarray, "n width"]]) -> None:
        header, row = self.header, 4 * self.header.width
        content = (np.ascontiguousarray(block, np.float32).tobytes() for block in blocks)
        rows = _written(vectors_file(self.folder, header), row * header.rows, content) // row
        journal = _written(journal_file(self.folder, header), header.journal, (f"{line}\n".encode() for line in lines))
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
    Writer(index.folder, replace(old, generation=old.generation + 1, rows=0, journal=0)).add(alive + unread, blocks)
    for file in (vectors_file(index.folder, old), journal_file(index.folder, old)):
        with suppress(OSError):  # Windows keeps what is mapped
            file.unlink()


def _written(path: Path, place: int, blocks: Iterable[bytes]) -> int:
    """Write blocks from a place on, where the file then ends; return its size."""
    with unwritable(path), path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(place)
        file.seek(place)
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
