"""Extents of a zip file's entries, read from its directory alone: nothing is unpacked or inflated.

torch stores the entries of its files uncompressed, so that they can be mapped. Format: PKWARE's APPNOTE.TXT 6.3, 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

MOST_DIRECTORY = 32 << 20  # bytes; a checkpoint of 5,000 tensors has half a megabyte
MOST_ENTRIES = 100_000

END, END_MAGIC = struct.Struct("<4s4H2IH"), b"PK\5\6"
LOCATOR, LOCATOR_MAGIC = struct.Struct("<4sIQI"), b"PK\6\7"
END64, END64_MAGIC = struct.Struct("<4sQ2H2I4Q"), b"PK\6\6"
CENTRAL, CENTRAL_MAGIC = struct.Struct("<4s6H3I5H2I"), b"PK\1\2"
LOCAL, LOCAL_MAGIC = struct.Struct("<4s5H3I2H"), b"PK\3\4"
LONGEST_COMMENT = 0xFFFF
SEE_ZIP64 = 0xFFFFFFFF
ENCRYPTED = 1


@dataclass(frozen=True)
class Entry:
    """Describe an uncompressed entry: its first byte in the file, and how many."""

    start: int
    length: int


def entries(opened: BinaryIO, size: int, skipped: Callable[[str], bool] = lambda name: False) -> dict[str, Entry]:
    """Locate a zip file's entries by name, but for those `skipped`, which may be compressed as they are never read.

    Raises ValueError where they are not plain, whole and apart.
    """
    count, offset, length = _directory(opened, size)
    if length > MOST_DIRECTORY or count > MOST_ENTRIES:
        raise ValueError(f"its directory claims {count} entries in {length} bytes")
    if offset + length > size:
        raise ValueError("its directory lies outside of the file")
    opened.seek(offset)
    found: dict[str, Entry] = {}
    for name, header, stored in _central(opened.read(length), count, skipped):
        if name in found:
            raise ValueError(f"it holds {ascii(name)[:80]} twice")
        found[name] = Entry(_data(opened, header), stored)
    end = 0
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].length)):
        if entry.start < end or entry.start + entry.length > size:
            raise ValueError(f"its entry {ascii(name)[:80]} overlaps another or the end of the file")
        end = entry.start + entry.length
    return found


def _directory(opened: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the directory's number of entries, first byte and length."""
    tail_start = max(0, size - END.size - LONGEST_COMMENT)
    opened.seek(tail_start)
    tail = opened.read(size - tail_start)
    at = tail.rfind(END_MAGIC)
    if at < 0 or len(tail) - at < END.size:
        raise ValueError("the directory at its end is missing")
    _, _, _, _, count, length, offset, _ = END.unpack_from(tail, at)
    if SEE_ZIP64 not in (length, offset) and count != 0xFFFF:
        return count, offset, length
    opened.seek(max(0, tail_start + at - LOCATOR.size))
    magic, _, place, _ = _unpack(LOCATOR, opened)
    if magic != LOCATOR_MAGIC:
        return count, offset, length
    opened.seek(min(place, size))
    magic, _, _, _, _, _, _, count, length, offset = _unpack(END64, opened)
    if magic != END64_MAGIC:
        raise ValueError("its zip64 directory is missing")
    return count, offset, length


def _unpack(layout: struct.Struct, opened: BinaryIO) -> tuple[Any, ...]:
    data = opened.read(layout.size)
    if len(data) < layout.size:
        raise ValueError("it ends within a header")
    return layout.unpack(data)


def _central(directory: bytes, count: int, skipped: Callable[[str], bool]) -> Iterator[tuple[str, int, int]]:
    """Yield each entry's name, where its local header lies and its length."""
    at = 0
    for _ in range(count):
        if len(directory) - at < CENTRAL.size:
            raise ValueError("its directory is cut short")
        fields = CENTRAL.unpack_from(directory, at)
        magic, flags, method, packed, stored = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
        if magic != CENTRAL_MAGIC:
            raise ValueError("its directory is damaged")
        at += CENTRAL.size
        name = directory[at : at + name_length].decode("utf-8", "backslashreplace")
        extra = directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if skipped(name):
            continue
        _check_plain(name, flags, method)
        stored, packed, header = _widen((stored, packed, header), extra)
        if packed != stored:
            raise ValueError(f"its entry {ascii(name)[:80]} has two lengths")
        yield name, header, stored


def _check_plain(name: str, flags: int, method: int) -> None:
    shown = ascii(name)[:80]
    if flags & ENCRYPTED or method != 0:
        raise ValueError(f"its entry {shown} is compressed or encrypted, which torch never writes")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise ValueError(f"its entry {shown} points out of the archive")


def _widen(fields: tuple[int, ...], extra: bytes) -> tuple[int, ...]:
    """Replace the fields that do not fit 32 bits by those of the zip64 extra field, in their order."""
    if SEE_ZIP64 not in fields:
        return fields
    at = 0
    while len(extra) - at >= 4:
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return tuple(next(wide, field) if field == SEE_ZIP64 else field for field in fields)
        at += 4 + length
    return fields


def _data(opened: BinaryIO, header: int) -> int:
    """Return where an entry's data begins: behind its local header, whose extra field is another than the central."""
    opened.seek(header)
    fields = _unpack(LOCAL, opened)
    if fields[0] != LOCAL_MAGIC:
        raise ValueError("an entry has no header")
    return header + LOCAL.size + fields[9] + fields[10]
