"""Tensors in a file as extents of bytes, which are mapped when a tensor is asked for."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from reverie.errors import ReverieError

# Tensors that lie together are mapped together, as every map costs a file handle; a map goes when its tensors have
# gone, so that converting a file one tensor after the other keeps only about so many bytes of it in memory.
SMALLEST_MAP = 16 << 20
MAPS_PER_FILE = 64
LONGEST_AXIS = 1 << 40
MOST_AXES = 16


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
