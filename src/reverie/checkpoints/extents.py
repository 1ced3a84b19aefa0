"""Tensors in a file as extents of bytes, mapped when one is asked for: of safetensors, and of the zip files of torch.

Every number of a header or directory is checked; nothing is unpacked or inflated, as torch stores the entries of its
zip files uncompressed. Format: PKWARE's APPNOTE.TXT 6.3, 4.3.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from reverie.errors import ReverieError
from reverie.files import reason_of

# Tensors that lie together are mapped together, as every map costs a file handle; a map goes when its tensors have
# gone, so that converting a file one tensor after the other keeps only about so many bytes of it in memory.
SMALLEST_MAP = 16 << 20
MAPS_PER_FILE = 64
LONGEST_AXIS = 1 << 40
MOST_AXES = 16
# The format allows 100 MB; the largest that are about, with a LoRA's training captions in them, have a few.
LONGEST_HEADER = 10 << 20
LENGTH = 8  # bytes before the header that say how long it is

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Extent:
    """Describe a tensor in a file: its first byte, and its axes with their strides in elements."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def length(self) -> int:
        """Return how many bytes there are from its first to behind its last element."""
        return reach(self.shape, self.stride) * self.dtype.itemsize


@dataclass(eq=False)
class Mapped:
    """Read tensors from a file through memory maps: a tensor costs memory only where it is touched.

    The maps are private: writing to a tensor does not write to the file, which must not be changed while they live.
    """

    file: Path
    extents: Mapping[str, Extent]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._regions = _group(self.extents)
        self._maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
        self._latest: mmap.mmap | None = None

    def names(self) -> Iterable[str]:
        """List the tensors' names."""
        return self.extents.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self.extents[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return what a tensor is stored as."""
        return self.extents[name].dtype

    def tensor(self, name: str) -> Tensor:
        """Map a tensor. Raises ReverieError where the file is not as it was when it was opened."""
        extent = self.extents[name]
        if extent.length == 0:
            return torch.empty(extent.shape, dtype=extent.dtype)
        mapped, offset = self._map(name)
        count = extent.length // extent.dtype.itemsize
        if offset % extent.dtype.itemsize:  # old pickles align nothing: kernels want it
            flat = torch.frombuffer(mapped, dtype=torch.uint8, offset=offset, count=extent.length).clone()
            flat = flat.view(extent.dtype)
        else:
            flat = torch.frombuffer(mapped, dtype=extent.dtype, offset=offset, count=count)
        return flat.as_strided(extent.shape, extent.stride)

    def _map(self, name: str) -> tuple[mmap.mmap, int]:
        """Return the map that a tensor lies in, and where in it."""
        first, last = self._regions[name]
        aligned = first - first % mmap.ALLOCATIONGRANULARITY
        found = self._maps.get(first)
        if found is None:
            try:
                with self.file.open("rb") as opened:
                    found = mmap.mmap(opened.fileno(), last - aligned, access=mmap.ACCESS_COPY, offset=aligned)
            except (OSError, ValueError) as error:
                raise ReverieError(f"cannot map {self.file} into memory ({error}); was it changed?") from error
            self._maps[first] = found
        self._latest = found
        return found, self.extents[name].start - aligned


def _group(extents: Mapping[str, Extent]) -> dict[str, tuple[int, int]]:
    """Say for each tensor which bytes are mapped with it: those of neighbours, up to a limit."""
    total = sum(extent.length for extent in extents.values())
    limit = max(SMALLEST_MAP, total // MAPS_PER_FILE)
    regions: dict[str, tuple[int, int]] = {}
    group: list[str] = []
    first = last = 0
    for name in sorted(extents, key=lambda name: extents[name].start):
        start, end = extents[name].start, extents[name].start + extents[name].length
        if group and max(last, end) - first > limit:
            regions.update(dict.fromkeys(group, (first, last)))
            group = []
        if not group:
            first = last = start
        group.append(name)
        last = max(last, end)
    regions.update(dict.fromkeys(group, (first, last)))
    return regions


def check_shape(shape: object) -> tuple[int, ...]:
    """Take a shape from a file, as a tuple of whole numbers of sensible size. Raises ValueError for anything else."""
    if not isinstance(shape, list | tuple) or len(shape) > MOST_AXES:
        raise ValueError(f"{_short(shape)} is no shape")
    if not all(type(axis) is int and 0 <= axis <= LONGEST_AXIS for axis in shape):
        raise ValueError(f"the shape {_short(shape)} is not possible")
    if math.prod(axis or 1 for axis in shape) > LONGEST_AXIS:
        raise ValueError(f"the shape {_short(shape)} is too large")
    return tuple(shape)


def reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements lie from the first to behind the last; strides must not be negative."""
    if 0 in shape:
        return 0
    return 1 + sum((axis - 1) * step for axis, step in zip(shape, stride, strict=True))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor that lies row by row."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _short(value: object) -> str:
    """Write what a file holds for a message: one line, not too long."""
    if isinstance(value, list | tuple):
        inside = ", ".join(ascii(item)[:24] if isinstance(item, int | float | str) else "..." for item in value[:8])
        return f"({inside}, ...)" if len(value) > 8 else f"({inside})"
    return ascii(value)[:60] if isinstance(value, int | str | None) else type(value).__name__


def open_safetensors(file: Path) -> Mapped:
    """Open a safetensors file. Raises ReverieError where its header is not that of a whole and honest file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            header = _header(opened.read(LENGTH), size)
            raw = opened.read(header)
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(table, dict):
            raise ValueError("the header is no table")
        metadata = table.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no table")
        start = LENGTH + header
        extents = {name: _extent(name, entry, start, size) for name, entry in table.items()}
        _check_covered(extents, start, size)
    except OSError as error:
        raise ReverieError(f"cannot read {file}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ReverieError(f"{file} is damaged or cut short ({_reason(error)}); fetch it again") from error
    return Mapped(file, extents, {key: text for key, text in metadata.items() if isinstance(text, str)})


def _header(prefix: bytes, size: int) -> int:
    """Read how long the header is."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH or size < LENGTH + 2:
        raise ValueError(f"it has {size} bytes, less than the smallest header")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header claims {length} bytes; at most {LONGEST_HEADER} are read")
    if length > size - LENGTH:
        raise ValueError(f"its header claims {length} bytes, the file has {size}")
    return length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a table; a key that comes twice could mean one thing to one reader and another to the next."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("its header names something twice")
    return table


def _extent(name: str, entry: Any, start: int, size: int) -> Extent:
    shown = ascii(name)[:80]
    if not isinstance(entry, dict):
        raise ValueError(f"{shown} is described by no table")
    dtype = DTYPES.get(str(entry.get("dtype"))[:16])
    if dtype is None:
        raise ValueError(
            f"{shown} has the dtype {ascii(entry.get('dtype'))[:24]}, which is not one of {', '.join(DTYPES)}"
        )
    shape, offsets = check_shape(entry.get("shape")), entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise ValueError(f"{shown} has no data_offsets")
    begin, end = offsets
    if not 0 <= begin <= end <= size - start:
        raise ValueError(f"{shown} lies at {begin} to {end}, outside of the {size - start} bytes of data")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{shown} has {end - begin} bytes, not the {math.prod(shape) * dtype.itemsize} of its shape")
    return Extent(start + begin, dtype, shape, contiguous(shape))


def _check_covered(extents: dict[str, Extent], start: int, size: int) -> None:
    """Check that the tensors lie one behind the other and fill the file, as the format demands."""
    end = start
    for name in sorted(extents, key=lambda name: (extents[name].start, extents[name].length)):
        if extents[name].start != end:
            word = "overlaps the tensor before it" if extents[name].start < end else "leaves a gap before it"
            raise ValueError(f"{ascii(name)[:80]} {word}")
        end += extents[name].length
    if end != size:
        raise ValueError(f"{size - end} bytes at its end belong to no tensor")


def _reason(error: Exception) -> str:
    """Say in one line what is wrong; the parser's own words tell the place."""
    if isinstance(error, RecursionError):
        return "its header is nested too deeply"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "its header is no JSON"
    return str(error)


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
