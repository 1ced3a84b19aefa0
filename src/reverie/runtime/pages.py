"""Which memory of a mapped file does a process let go of? That of weights that it needs no more in the file's form.

A weight that was packed lies in memory twice: packed, and as pages of its file. The system takes such pages back when
memory is short, but counts them as the process' until then.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PAGEMAP = Path("/proc/self/pagemap")
"""An entry of 64 bits for each page (Linux, Documentation/admin-guide/mm/pagemap.rst)."""
ENTRY = 8  # bytes
SWAPPED, OF_A_FILE = 1 << 62, 1 << 61  # bits; the sign, bit 63, says that a page is present


def let_go(weight: Tensor) -> None:
    """Let go of the pages of a weight that all are still those of its file: they are read anew if touched again.

    Of a private map, madvise(2)'s MADV_DONTNEED forgets what was written to it. Written pages are not the file's any
    more, which the kernel tells; where one is, or where the kernel does not tell, nothing happens. Nobody may write to
    the weight meanwhile.
    """
    libc = _libc()
    if libc is None or weight.device.type != "cpu" or not weight.is_contiguous():
        return
    first = -(-weight.data_ptr() // mmap.PAGESIZE)
    count = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE - first
    if count <= 0:
        return
    try:
        with PAGEMAP.open("rb", buffering=0) as pagemap:
            pagemap.seek(first * ENTRY)
            told = bytearray(pagemap.read(count * ENTRY))
    except OSError:
        return
    if len(told) < count * ENTRY:
        return
    pages = torch.frombuffer(told, dtype=torch.int64)
    copied = (pages < 0) & (pages & OF_A_FILE == 0)
    if not bool((copied | (pages & SWAPPED != 0)).any()):
        libc.madvise(first * mmap.PAGESIZE, count * mmap.PAGESIZE, mmap.MADV_DONTNEED)


def trim() -> None:
    """Give the system back what lies free between what is in use: glibc's malloc_trim(3), where it is there."""
    release = getattr(_libc(), "malloc_trim", None)
    if release is not None:
        release(0)


@cache
def _libc() -> ctypes.CDLL | None:
    """Return the C library where it has madvise and the system tells of pages: Linux."""
    if not PAGEMAP.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
