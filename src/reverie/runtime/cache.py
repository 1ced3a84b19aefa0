"""Packed weights kept in files, which later processes map: nothing is packed, and no memory is a process's own.

A folder holds the weights of one model for one kind of machine, a file those that are packed together. What is missing
is packed as ever, and written by a thread in what time the computation leaves; a process that ends earlier finishes one
file and leaves the rest to the next. A file is written whole or not at all, and one that is cut short or damaged counts
as missing: what it holds is added up when it is first read since the system started. Where nothing can be written,
nothing is: a read-only or full disk costs no more than packing.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import mmap
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread, get_native_id
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from reverie.errors import ReverieError
from reverie.files import atomic_write, cache_folder, sha256_of, sweep
from reverie.runtime import kernels
from reverie.runtime.extension import stop_recording, version
from reverie.runtime.kernels import Panels, let_go

FORMAT = 2  # of the files and of the panels in them
LIMIT_VARIABLE = "REVERIE_PACKED_GB"
LIMIT = 16  # GB that all folders take at most, where the variable does not say
SPARE = 4e9  # bytes of the disk that stay free
LENGTH = 8  # bytes of the table's length
FOOT = hashlib.sha256().digest_size + LENGTH
PAGE = 4096
WORD = 8  # bytes of the numbers that are added up
BOOT = Path("/proc/sys/kernel/random/boot_id")  # another each time the system starts (Linux, random(4))
LAST_TO_RUN = 19  # the niceness of a thread that gets what others leave


@dataclass(frozen=True)
class Origin:
    """Say of which name in which folder a weight is, where its memory was, and how often it had been written to."""

    folder: Path
    name: str
    address: int
    version: int

    def is_of(self, weight: Tensor) -> bool:
        """Tell whether a weight is still what was read."""
        return weight.data_ptr() == self.address and version(weight) == self.version


_ORIGINS = WeakTensorKeyDictionary()


def remember(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Let the packed forms of a network's weights, which have names there, be kept in a folder.

    What is written to them later is noticed by their address and torch's count of writes, which `.data` passes over.
    """
    if kernels.mappable():
        with suppress(OSError):
            os.utime(folder)  # for `make_room`: it was used
        for name, weight in weights:
            if not weight.is_inference():
                _ORIGINS[weight] = Origin(folder, name, weight.data_ptr(), version(weight))


def machine_folder(model: str, files: Iterable[Path], dtype: torch.dtype) -> Path:
    """Return the folder of a model read from files, in a dtype, on this machine with its present number of threads.

    A file is told from others by what the system says of it, so that one that was changed is another. Raises
    OSError where one is missing.
    """
    stats = [file.stat() for file in files]
    told_apart = [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in stats]
    orders = {name: value for name, value in os.environ.items() if name.startswith(("ONEDNN_", "DNNL_"))}
    capabilities = sorted(getattr(torch.cpu, "get_capabilities", dict)().items())
    threads = torch.get_num_threads()
    machine = (torch.__version__, torch.__config__.show(), platform.machine(), capabilities, orders, threads)
    name = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in model)[:80]
    return cache_folder() / "packed" / f"{name}-{sha256_of([repr((FORMAT, machine, told_apart, str(dtype)))])[:16]}"


Kept = kernels.Packed | Panels


def keep(weights: Sequence[Tensor], form: str, pack: Callable[[], list[Any]]) -> list[Any]:
    """Return what `pack` makes of weights: mapped, where a process did so before; else made, and kept for the next.

    `form` tells apart what may be made of the same weights. What oneDNN packed in floating point and panels of 8-bit
    numbers are kept, and the list comes to hold mapped ones of the same values once they are. The weights' own pages
    are let go of.
    """
    stop_recording()
    file = _file_of(weights, form)
    if file is not None and (held := read(file)) is not None:
        return held
    packed = pack()
    for weight in weights:
        let_go(weight)
    if file is not None and all(isinstance(part, Tensor | Panels) for part in packed):
        _queue().put((file, packed))
    return packed


def _file_of(weights: Sequence[Tensor], form: str) -> Path | None:
    """Return the file for weights of a form; None where one of them was not read or is not what was read."""
    origins = [_ORIGINS.get(weight) for weight in weights]
    known = [one for one, weight in zip(origins, weights, strict=True) if one is not None and one.is_of(weight)]
    if len(known) < len(weights):
        return None
    return known[0].folder / sha256_of([form, *(one.name for one in known)])[:32]


def read(file: Path) -> list[Kept] | None:
    """Map the packed weights of a file; None where there is none, or it is damaged."""
    try:
        with file.open("rb") as opened:
            held = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
            parts = _table(held)
            if os.fstat(opened.fileno()).st_mtime_ns != (mark := _mark()):
                if any(total(held[start:end]) != summed for start, end, summed, *_ in parts):
                    return None
                if mark is not None:
                    with suppress(OSError):  # of another user: added up each time
                        os.utime(opened.fileno(), ns=(mark, mark))
        return [
            kernels.from_memory(held[start:end], shape, getattr(torch, dtype), bytes.fromhex(order))
            for start, end, _, shape, dtype, order in parts
        ]
    except (OSError, ValueError, RuntimeError):
        return None


def _table(held: memoryview) -> list[tuple[int, int, int, list[int], str, str]]:
    """Return where each part of a file lies, its sum and how it is read. Raises ValueError where that is damaged."""
    size = int.from_bytes(held[-LENGTH:], "little")
    table = bytes(held[-FOOT - size : -FOOT])
    if hashlib.sha256(table).digest() != held[-FOOT:-LENGTH]:
        raise ValueError("the table is damaged")
    parts: list[tuple[int, int, int, list[int], str, str]] = json.loads(table)
    return parts


def total(memory: memoryview) -> int:
    """Add up the 64-bit words of a memory modulo 2^64, and what is left of one: a flipped bit or a lost page shows."""
    words = len(memory) // WORD * WORD
    rest = int.from_bytes(memory[words:], "little")
    return rest + (int(torch.frombuffer(memory[:words], dtype=torch.int64).sum()) if words else 0)


@cache
def _mark() -> int | None:
    """Return the time, in ns, that a file bears once it was added up since the system started; None where none can."""
    try:
        return int(sha256_of([BOOT.read_text()])[:7], 16) * 10**9  # whole seconds before 1979
    except OSError:
        return None


def write(file: Path, packed: Sequence[Kept]) -> None:
    """Write packed weights, each from a page of its own on, and last how they are read. Raises ReverieError."""
    table = []
    with atomic_write(file, sync=True) as temporary, temporary.open("wb") as opened:
        for part in packed:
            memory, order = kernels.memory(part)
            start = opened.seek(-opened.tell() % PAGE, os.SEEK_CUR)
            opened.write(memory)
            dtype = str(part.dtype).removeprefix("torch.")
            table.append((start, opened.tell(), total(memory), list(part.shape), dtype, order.hex()))
        head = json.dumps(table).encode()
        opened.write(head + hashlib.sha256(head).digest() + len(head).to_bytes(LENGTH, "little"))


Queue = SimpleQueue[tuple[Path, list[Kept]] | None]
"""What waits to be written; None ends it."""


@cache
def _queue() -> Queue:
    """Start the thread that writes, and return what it takes from."""
    queue: Queue = SimpleQueue()
    thread = Thread(target=_write_all, args=(queue,), name="packed weights", daemon=True)
    thread.start()
    atexit.register(_end, queue, thread)
    return queue


def _end(queue: Queue, thread: Thread) -> None:
    """Leave what waits to later processes; wait for the file that is being written.

    An interpreter that ends stops its threads where they next ask for it, and one that is within torch then takes the
    process down.
    """
    with suppress(Empty):
        while True:
            queue.get_nowait()
    queue.put(None)
    thread.join()


def _write_all(queue: Queue) -> None:
    """Write what comes, until something cannot be written: then nothing more is. Whatever computes goes first."""
    if sys.platform == "linux":  # where a thread has a priority of its own, setpriority(2)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, get_native_id(), LAST_TO_RUN)
    possible = True
    while (job := queue.get()) is not None:
        possible = possible and store(*job)
        del job


def store(file: Path, packed: list[Kept]) -> bool:
    """Write packed weights to a file and let the list hold them mapped; tell whether they could be written."""
    try:
        if not make_room(file.parent, sum(part.nbytes for part in packed)):
            return False
        sweep(file)
        write(file, packed)
    except (OSError, ReverieError, ValueError):
        return False
    packed[:] = read(file) or packed
    return True


def make_room(folder: Path, size: int) -> bool:
    """Make a folder, and room in it for so many bytes; tell whether there is.

    Others beside it are removed where all of them would pass the limit, those first that were used longest ago;
    processes that have mapped them keep what they have. Raises OSError, and ValueError where the variable is no number.
    """
    limit = float(os.environ.get(LIMIT_VARIABLE, LIMIT)) * 1e9
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {one: sum(file.stat().st_size for file in one.iterdir()) for one in folder.parent.iterdir()}
    for one in sorted(sizes.keys() - {folder}, key=lambda one: one.stat().st_mtime):
        if sum(sizes.values()) + size <= limit:
            break
        shutil.rmtree(one)
        del sizes[one]
    return sum(sizes.values()) + size <= limit and shutil.disk_usage(folder).free - size >= SPARE
