"""The compiled extension: kernels in C for processors with AVX2, AVX-512 or AMX, where a compiler was there for them.

`c/*.c` is compiled once for each set of instructions as reverie is installed; what is missing is computed by torch's
operators, slower. Threads are those of torch, whose OpenMP library is loaded first. While a thread writes a plan
(`plans.py`), its calls are written down as they are made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from reverie.errors import RequestWarning, ReverieError, warn
from reverie.runtime import kernels

# By the extension: what the processor must have, by torch.cpu.get_capabilities(). The first that runs here is taken.
AVX512 = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_vnni", "avx512_bf16")
BUILDS = {
    "_amx": (*AVX512, "amx_tile", "amx_int8", "amx_bf16"),
    "_avx512": AVX512,
    "_avx2": ("avx2", "fma3"),
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the extension that was built for this processor; None where there is none that loads.

    One older than the sources beside it is left out, and that is said: what they are given may be otherwise now.
    """
    has = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
    has["amx_tile"] = has.get("amx_tile") and kernels.has_tiles(torch.bfloat16)
    sources = list(Path(__file__).with_name("c").glob("*.[ch]"))  # there in a checkout, not in what a wheel installs
    for name, needed in BUILDS.items():
        files = (Path(__file__).with_name(name + suffix) for suffix in EXTENSION_SUFFIXES)
        file = next(filter(Path.exists, files), None)
        if file is not None and all(has.get(feature) for feature in needed):
            if any(source.stat().st_mtime > file.stat().st_mtime for source in sources):
                warn(
                    "the kernels in C are older than their sources and left out; install reverie again", RequestWarning
                )
                return None
            with suppress(OSError):  # built elsewhere, for another C library, or without OpenMP's here
                return ctypes.CDLL(str(file))
    return None


def operators_compute() -> bool:
    """Tell whether torch's own operators have to: with gradients, under autocast, which chooses dtypes, and traced."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch._C._is_tracing()


def takes(*operands: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether the extension is there for these tensors: numbers in `dtype` on the CPU, no `operators_compute`."""
    return (
        not operators_compute()
        and library() is not None
        and all(operand.dtype == dtype and operand.is_cpu for operand in operands)
    )


Operand = Tensor | int | float | None
FLOATS: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""Of memory that kernels write to: torch's own defaults may be others."""


def call(name: str, *operands: Operand) -> None:
    """Call a kernel: tensors go as the address of their numbers (None as no address), ints as int64_t, floats as float.

    Raises RuntimeError where there is no extension, and ReverieError where memory ran out.
    """
    held = library()
    if held is None:
        raise RuntimeError("no extension was compiled for this processor")
    kernel = getattr(held, name)  # ctypes keeps it, with what it takes
    if kernel.argtypes is None:
        kernel.argtypes = [*map(_type, operands)]
        kernel.restype = ctypes.c_int if name in ALLOCATING else None
    given = [operand.data_ptr() if isinstance(operand, Tensor) else operand for operand in operands]
    if is_recorded():
        RECORDING.plan.add(kernel, operands, given)
    check_memory(kernel(*given))


ALLOCATING = {
    "attention_bfloat16",
    "attention_float32",
    "convolve",
    "group_norm",
    "group_norm_bfloat16",
    "product",
}
"""Kernels that take memory to compute in, and return whether there was none."""


def check_memory(missing: int | None) -> None:
    """Raise ReverieError where a kernel had no memory to compute in."""
    if missing:
        raise ReverieError("memory ran out while computing; ask for a smaller size, or close other programs")


def _type(operand: Operand) -> type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float]:
    if isinstance(operand, Tensor | None):
        return ctypes.c_void_p
    return ctypes.c_int64 if isinstance(operand, int) else ctypes.c_float


FEW = 1024  # pixels, or rows, up to which the kernels for small networks compute
SMALL = 1 << 16  # input times output channels up to which they do
MODES = {"plain": 0, "gelu": 1, "add": 2, "multiply": 3}  # c/products.c


@torch.no_grad()
def lay_panels(weight: Float[Tensor, "out taps in"]) -> Float[Tensor, "panels taps in columns"]:
    """Lay the rows of kernels out in panels, which the last fills up with zeros."""
    held = library()
    assert held is not None
    stop_recording()
    columns = ctypes.c_int64.in_dll(held, "panel_columns").value
    rows = F.pad(weight.detach(), (0, 0, 0, 0, 0, -len(weight) % columns))
    return rows.unflatten(0, (-1, columns)).permute(0, 2, 3, 1).contiguous()


def few(x: Tensor, *others: Tensor | None) -> bool:
    """Tell whether the kernels in C multiply rows: few, in float32, one after the other, as those of `others` lie."""
    rows = (x, *(other for other in others if other is not None))
    return x.numel() <= FEW * x.shape[-1] and takes(*rows) and all(row.is_contiguous() for row in rows)


def multiply(
    x: Float[Tensor, "*b d"],
    panels: Float[Tensor, "panels 1 d columns"],
    bias: Float[Tensor, " out"] | None,
    width: int,
    mode: str = "plain",
    other: Float[Tensor, "*b out"] | None = None,
) -> Float[Tensor, "*b out"]:
    """Multiply few rows by a narrow matrix; `mode` says what is done to the product, with `other` or without."""
    y = torch.empty((*x.shape[:-1], width), **FLOATS)
    rows = x.numel() // x.shape[-1]
    call("product", x, panels, bias, other, y, rows, x.shape[-1], width, MODES[mode])
    return y


def convolve_small(
    x: Float[Tensor, "b c h w"],
    panels: Float[Tensor, "panels taps c columns"],
    bias: Float[Tensor, " out"] | None,
    width: int,
    *,
    stride: int = 1,
    doubled: bool = False,
    add: Float[Tensor, "b out #h2 #w2"] | None = None,
) -> Float[Tensor, "b out h2 w2"]:
    """Convolve a small channels-last image by 3x3 kernels, or by the corners of a doubled one, and add `add`."""
    images, channels, *size = x.shape
    sides = [2 * side if doubled else (side - 1) // stride + 1 for side in size]
    y = torch.empty((images, width, *sides), memory_format=torch.channels_last, **FLOATS)
    one_pixel = add is not None and add.shape[2:] != y.shape[2:]
    shape = (images, *size, channels, width, stride, int(doubled), int(one_pixel))
    call("convolve", x, panels, bias, add, y, *shape)
    return y


def silu(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Return the SiLU of few numbers."""
    if not takes(x) or not x.is_contiguous():
        return F.silu(x)
    y = torch.empty_like(x)
    call("activate", x, y, x.numel())
    return y


_STEPS = [0]  # that optimisers took in this process: fused ones write to weights without torch's counting it


def _count_step(*_: Any) -> None:
    _STEPS[0] += 1


register_optimizer_step_post_hook(_count_step)


def version(weight: Tensor) -> int:
    """Count how often a weight was written to, or may have been; -1 for one of inference mode, which has no count."""
    return -1 if weight.is_inference() else weight._version + _STEPS[0]


def stamp(weight: Tensor) -> tuple[int, int]:
    """Say as of when a weight is: how often it was written to, which `.data` passes over, and where it lies."""
    return version(weight), weight.data_ptr()


RECORDING = local()
"""`plan` is the one that this thread writes."""


def is_recorded() -> bool:
    """Tell whether this thread writes a plan: what kernels write in between must be memory of the plan's."""
    return getattr(RECORDING, "plan", None) is not None


def stop_recording() -> None:
    """Let the plan that is written be none: what is computed now is not to be repeated."""
    if is_recorded():
        RECORDING.plan.whole = False


@contextmanager
def apart() -> Iterator[None]:
    """Within the block, write calls down among those that need not be repeated every time: of prompts."""
    if not is_recorded():
        yield
        return
    plan = RECORDING.plan
    before, plan.is_apart = plan.is_apart, True
    try:
        yield
    finally:
        plan.is_apart = before
