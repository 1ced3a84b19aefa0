"""What does a safetensors file hold? Its header is read with every number checked, before any weight is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from reverie.checkpoints.extents import Extent, Mapped, check_shape, contiguous
from reverie.errors import ReverieError
from reverie.files import reason_of

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
