"""The compiled extension: kernels in C for processors with AVX2 or AVX-512, where a compiler was there to build them.

`c/*.c` is compiled once for either set of instructions as reverie is installed; what is missing is computed by torch's
operators, slower. Threads are those of torch, whose OpenMP library is loaded first.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

# By the extension: what the processor must have, by torch.cpu.get_capabilities(). The first that runs here is taken.
BUILDS = {
    "_avx512": ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni", "avx512_bf16"),
    "_avx2": ("avx2", "fma3"),
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the extension that was built for this processor; None where there is none that loads."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for name, needed in BUILDS.items():
        files = (Path(__file__).with_name(name + suffix) for suffix in EXTENSION_SUFFIXES)
        file = next(filter(Path.exists, files), None)
        if file is not None and all(has.get(feature) for feature in needed):
            with suppress(OSError):  # built elsewhere, for another C library, or without OpenMP's here
                return ctypes.CDLL(str(file))
    return None


def takes(*operands: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether the extension is there for these tensors: numbers in `dtype` on the CPU, without gradients."""
    return (
        not torch.is_grad_enabled()
        and library() is not None
        and all(operand.dtype == dtype and operand.is_cpu for operand in operands)
    )


def call(name: str, *operands: Tensor | int | float | None) -> None:
    """Call a kernel: tensors go as the address of their numbers (None as no address), ints as int64_t, floats as float.

    Raises RuntimeError where there is no extension.
    """
    held = library()
    if held is None:
        raise RuntimeError("no extension was compiled for this processor")
    kernel = getattr(held, name)  # ctypes keeps it, with what it takes
    if kernel.argtypes is None:
        kernel.argtypes, kernel.restype = [*map(_type, operands)], None
    kernel(*[operand.data_ptr() if isinstance(operand, Tensor) else operand for operand in operands])


def _type(operand: Tensor | int | float | None) -> type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float]:
    if isinstance(operand, Tensor | None):
        return ctypes.c_void_p
    return ctypes.c_int64 if isinstance(operand, int) else ctypes.c_float
