"""oneDNN kernels for packed weights (the operators that torch's compiler emits), rounded weights, release of pages.

A packed weight is an opaque tensor. It lies as the processor's kernel wants it, so that no call rearranges it anew, and
gives the very same values back. Its memory and oneDNN's description of how it is ordered make the same tensor in
another process. The operators have no gradients and take float32 on the CPU, and bfloat16 where the processor computes
in it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import NewType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32, Int64, UInt8
from torch import Tensor

from reverie.errors import ReverieError

Packed = NewType("Packed", Tensor)
"""A weight as oneDNN orders it."""

OPERATORS = ("_convolution_pointwise", "_linear_pointwise", "_reorder_linear_weight")
CAPSULE = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
NOTHING: list[float] = []  # the scalars of a fused operation that has none


@cache
def available() -> bool:
    """Tell whether this build of torch has the operators, by computing with them."""
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    try:
        image = torch.ones(1, 16, 1, 1, dtype=torch.float32, device="cpu")
        weight = image.expand(16, -1, -1, -1)
        kernel = pack_conv2d(weight, image.shape, (1, 1), (0, 0), (1, 1))
        convolved = conv2d(image, kernel, None, (1, 1), (0, 0), (1, 1), add=image, relu=True)
        product = linear(image.flatten(1), pack_linear(weight.flatten(1)), None, gelu=True)
        return bool(convolved.eq(17).all()) and bool((product - 16).abs().max() < 1e-3)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return False


@cache
def native(dtype: torch.dtype) -> bool:
    """Tell whether this processor computes in a dtype: float32, and bfloat16 where it has AVX512-BF16 or AMX.

    Without them oneDNN imitates bfloat16, which takes many times as long as float32.
    """
    if dtype == torch.bfloat16:
        checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
        return any(check is not None and check() for check in checks)
    return dtype == torch.float32


UNLIMITED = ("AMX", "ALL", "DEFAULT")  # of which one stands in ONEDNN_MAX_CPU_ISA where that allows AMX


@cache
def has_tiles(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN multiplies matrices of a dtype by the tiles of AMX here: bfloat16.

    Products then take a fraction of the time that reading a large weight does. A process may use tiles once it asked
    for them, which this does (Linux, Documentation/arch/x86/xstate.rst).
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    allowed = any(word in limit for word in UNLIMITED) and getattr(torch.cpu, "_init_amx", bool)()
    return dtype == torch.bfloat16 and bool(allowed)


@torch.no_grad()
def pack_conv2d(
    weight: Float[Tensor, "out in kh kw"],
    size: Sequence[int],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Packed:
    """Pack the weight of a convolution without groups, for inputs of a `size` (b, c, h, w).

    `stride`, `padding` and `dilation` are (vertical, horizontal), in pixels.

    It computes the same for other sizes, but the kernel for its order may then take up to 20 times as long.
    """
    weight = weight.detach().contiguous()
    shape = (list(padding), list(stride), list(dilation), 1, list(size))
    if hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):  # newer, and spares a copy
        return Packed(torch.ops.mkldnn._reorder_convolution_weight.default(weight, *shape))
    return Packed(torch.ops.aten.mkldnn_reorder_conv2d_weight.default(weight.to_mkldnn(), *shape))


@torch.no_grad()
def pack_linear(weight: Float[Tensor, "out in"]) -> Packed:
    """Pack the weight of a linear layer; its order does not depend on the number of rows."""
    return Packed(torch.ops.mkldnn._reorder_linear_weight.default(weight.detach().contiguous()))


@torch.no_grad()
def pack_taps(weight: Float[Tensor, "out in 3 3"]) -> Packed:
    """Pack the weight of a convolution as that of a product of what `unfold` gives."""
    return pack_linear(weight.permute(0, 2, 3, 1).flatten(1))


def unfold(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w taps"]:
    """Lay beside each pixel what a 3x3 kernel sees around it, channel by channel, with zeros beyond the edges."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, pixel, channel = padded.stride()
    size = (len(x), *x.shape[2:], 3, 3 * x.shape[1])  # three pixels of a row lie one after the other
    return padded.as_strided(size, (image, row, pixel, row, channel)).flatten(3)


def unpack(packed: Packed | Rounded) -> Tensor:
    """Return a packed weight's values, bit by bit those that were packed."""
    return packed.to_dense()


def give_shape(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return unpacked rows as a weight of a shape: of `pack_taps` each has its channels tap by tap."""
    if rows.dim() < len(shape) and prod(shape[2:]) > 1:
        return rows.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2).contiguous()
    return rows.view(shape)


def memory(packed: Packed | Panels) -> tuple[memoryview, bytes]:
    """Return the memory of a packed weight, which must outlive the view, and oneDNN's description of its order."""
    if isinstance(packed, Panels):
        return packed.held.numpy().data, packed.order
    size, address = torch.ops.mkldnn._nbytes(packed), torch.ops.mkldnn.data_ptr(packed)
    description = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
    return memoryview((ctypes.c_ubyte * size).from_address(address)), description


def from_memory(held: memoryview, shape: Sequence[int], dtype: torch.dtype, description: bytes) -> Packed | Panels:
    """Return the packed weight that `memory` took apart, over the memory given, which it keeps.

    Raises RuntimeError where the description is none. See `mappable`.
    """
    if description == Panels.order:
        return Panels.over(torch.frombuffer(held, dtype=torch.uint8), torch.Size(shape), dtype)
    shim, tensor, rank = _shim(), ctypes.c_void_p(), len(shape)
    start, sizes = ctypes.c_void_p(ctypes.addressof(ctypes.c_ubyte.from_buffer(held))), (ctypes.c_int64 * rank)(*shape)
    kind = getattr(shim, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
    laid_out = (ctypes.c_int64(rank), sizes, sizes, ctypes.c_int64(0), kind)  # strides are not looked at
    where = (shim.aoti_torch_device_type_cpu(), 0, ctypes.byref(tensor), shim.aoti_torch_layout__mkldnn())
    order = (description, ctypes.c_int64(len(description)))
    if shim.aoti_torch_create_tensor_from_blob_v2(start, *laid_out, *where, *order):
        raise RuntimeError("oneDNN does not know this order of a packed weight")
    packed = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(CAPSULE(tensor, None, None))
    packed.held = held  # type: ignore[attr-defined]  # lives as long as the tensor does
    return Packed(packed)


@cache
def mappable() -> bool:
    """Tell whether this build of torch makes packed weights over memory that is there, by making one."""
    try:
        weight = torch.arange(256, dtype=torch.float32).view(16, 16)
        held, description = memory(packed := pack_linear(weight))
        again = from_memory(memoryview(bytearray(held)), packed.shape, packed.dtype, description)
        return torch.equal(unpack(again), weight)
    except (RuntimeError, AttributeError, TypeError, OSError, StopIteration):
        return False


@cache
def _shim() -> ctypes.CDLL:
    """Return torch's library with its C interface for compiled models (torch/csrc/inductor/aoti_torch/c/shim.h)."""
    folder = Path(torch.__file__).parent / "lib"
    return ctypes.CDLL(str(next(file for file in folder.iterdir() if file.stem in ("libtorch_cpu", "torch_cpu"))))


def conv2d(
    x: Float[Tensor, "b c h w"],
    weight: Packed,
    bias: Float[Tensor, " out"] | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    add: Float[Tensor, "b out h2 w2"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "b out h2 w2"]:
    """Convolve with a weight of `pack_conv2d`, and in the same pass add `add` and then take the ReLU.

    `stride`, `padding` and `dilation` are those that it was packed with. Channels-last gives channels-last.
    """
    shape, convolve = (list(padding), list(stride), list(dilation), 1), torch.ops.mkldnn._convolution_pointwise
    if add is None:
        return convolve.default(x, weight, bias, *shape, "relu" if relu else "none", NOTHING, "")
    return convolve.binary(x, add, weight, bias, *shape, "add", 1.0, "relu" if relu else None, NOTHING, None)


def linear(
    x: Float[Tensor, "*b d"],
    weight: Packed,
    bias: Float[Tensor, " out"] | None,
    *,
    gelu: bool = False,
    add: Float[Tensor, "*b out"] | None = None,
    multiply: Float[Tensor, "*b out"] | None = None,
) -> Float[Tensor, "*b out"]:
    """Multiply by a weight, and in the same pass take the exact GELU, add or multiply: one of the three.

    Raises ReverieError where `add` is of another shape than the product.
    """
    if add is not None:
        check_shape(add, (*x.shape[:-1], weight.shape[0]))
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")
    if multiply is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, multiply, weight, bias, "mul")
    if gelu:
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "gelu", NOTHING, "none")
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", NOTHING, "")


def check_shape(add: Tensor, shape: Sequence[int]) -> None:
    """Raise ReverieError where what is to be added is not of the shape that it is added to."""
    if add.shape != torch.Size(shape):
        raise ReverieError(f"what is added has shape {tuple(add.shape)}, the product {tuple(shape)}; give it that")


LARGEST = 127  # of a rounded weight, so that the range is the same on both sides
SMALLEST = 1e-30  # of a channel's largest weight, so that no scale is denormal
PANEL, QUAD = 64, 4  # outputs and inputs that lie together in a rounded weight of the extension's


@torch.no_grad()
def round_weight(weight: Float[Tensor, "out ..."]) -> tuple[Int8[Tensor, "out ..."], Float[Tensor, " out"]]:
    """Round each output channel to whole numbers from -127 to 127, and return them with their scales.

    The scales end in 7 bits of 0, so that 127 of them are a float32 too: rounded values are rounded to themselves.
    """
    rows = weight.detach().float()
    scales = rows.flatten(1).abs().amax(1).clamp(min=SMALLEST) / LARGEST
    scales = scales.view(torch.int32).add_(LARGEST).bitwise_and_(~LARGEST).view(torch.float32)
    return (rows / scales.view(-1, *[1] * (rows.ndim - 1))).round_().to(torch.int8), scales


@dataclass(frozen=True, eq=False)
class Rounded:
    """Hold a weight as whole numbers, and what one of them means in each output channel."""

    packed: Tensor
    scales: Float[Tensor, " out"]
    shape: torch.Size
    dtype: torch.dtype
    is_cpu = True

    def rows(self) -> Int8[Tensor, "out ..."]:
        """Return the whole numbers, in the weight's shape."""
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """Return the weight's values as they were rounded."""
        scales = self.scales[: self.shape[0]].view(-1, *[1] * (len(self.shape) - 1))
        return (self.rows() * scales).to(self.dtype).contiguous()


class OneDNNWeight(Rounded):
    """Hold a weight in oneDNN's order."""

    @cached_property
    def zeros(self) -> Int64[Tensor, " out"]:
        """Return the numbers that mean 0: the same in each channel."""
        return torch.zeros(len(self.scales), dtype=torch.int64)

    def rows(self) -> Int8[Tensor, "out ..."]:
        rows = self.packed.to_dense()
        return rows.T if len(self.shape) == 2 else rows


@dataclass(frozen=True, eq=False)
class Panels(Rounded):
    """Hold a weight in the order of `c/int8.c`: (panel, tap, quad, output of the panel, input of the quad).

    `totals` are each output's sum, by which an input's zero point is taken out. All lie in one memory, `held`.
    """

    totals: Int32[Tensor, " padded"]
    held: UInt8[Tensor, " bytes"]
    order = b"panels"  # as `cache.FORMAT` has them, which no description by oneDNN is

    @classmethod
    def over(cls, held: UInt8[Tensor, " bytes"], shape: torch.Size, dtype: torch.dtype) -> Panels:
        """Return the weight that lies in a memory. Raises RuntimeError where that is of another size."""
        size = _panel_size(shape)
        padded = size[0] * PANEL
        levels, scales, totals = held.split([prod(size), 4 * padded, 4 * padded])
        return cls(
            levels.view(torch.int8).view(size), scales.view(torch.float32), shape, dtype, totals.view(torch.int32), held
        )

    @property
    def nbytes(self) -> int:
        """Return how many bytes it holds."""
        return self.held.nbytes

    def rows(self) -> Int8[Tensor, "out ..."]:
        outputs, inputs = self.shape[:2]
        plain = self.packed.permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)
        return plain[:outputs, :inputs].reshape(self.shape)


def _panel_size(shape: torch.Size) -> tuple[int, ...]:
    return (-(-shape[0] // PANEL), prod(shape[2:]), -(-shape[1] // QUAD), PANEL, QUAD)


@torch.no_grad()
def pack_panels(weight: Float[Tensor, "out ..."]) -> Panels:
    """Round a weight and lay it out for `c/int8.c`, with zeros where a panel or quad is not full."""
    rows, scales = round_weight(weight)
    size = _panel_size(weight.shape)
    held = torch.empty(prod(size) + 8 * size[0] * PANEL, dtype=torch.uint8)
    panels = Panels.over(held, weight.shape, weight.dtype)
    whole = F.pad(
        rows.flatten(2) if rows.ndim > 2 else rows[:, :, None], (0, 0, 0, -rows.shape[1] % QUAD, 0, -len(rows) % PANEL)
    )
    panels.packed.copy_(whole.unflatten(1, (-1, QUAD)).unflatten(0, (-1, PANEL)).permute(0, 4, 2, 1, 3))
    panels.scales.copy_(F.pad(scales, (0, -len(scales) % PANEL)))
    torch.sum(panels.packed, (1, 2, 4), dtype=torch.int32, out=panels.totals.view(-1, PANEL))
    return panels


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
            entries = bytearray(pagemap.read(count * ENTRY))
    except OSError:
        return
    if len(entries) < count * ENTRY:
        return
    pages = torch.frombuffer(entries, dtype=torch.int64)
    copied = (pages < 0) & (pages & OF_A_FILE == 0)
    if not bool((copied | (pages & SWAPPED != 0)).any()):
        libc.madvise(first * mmap.PAGESIZE, count * mmap.PAGESIZE, mmap.MADV_DONTNEED)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
HELD, MAPPED = 2**28, 2**25  # bytes: free at most, and of a block that the system gives and takes by itself


def hold_memory() -> None:
    """Let freed memory wait for its next use, where glibc is there: mallopt(3).

    Small networks free blocks of a few MiB all the time, and each page that comes anew costs microseconds.
    """
    tune = getattr(_libc(), "mallopt", None)
    if tune is not None:
        tune(M_MMAP_THRESHOLD, MAPPED)
        tune(M_TRIM_THRESHOLD, HELD)


def trim() -> None:
    """Give the system back what lies free between what is in use: glibc's malloc_trim(3), where it is there."""
    release = getattr(_libc(), "malloc_trim", None)
    if release is not None:
        release(0)


def give_back(memory: Tensor) -> None:
    """Give the pages of a memory back, whose numbers are lost: madvise(2). It may be written to anew."""
    first = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (memory.data_ptr() + memory.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0 and (libc := _libc()) is not None:
        libc.madvise(first, size, mmap.MADV_DONTNEED)


def take_huge_pages(fresh: Tensor) -> None:
    """Let a large tensor that nothing was written to yet come in huge pages: madvise(2), where Linux grants them.

    Small pages that the system gives anew cost several times what writing to them does.
    """
    if fresh.nbytes >= MAPPED and (libc := _libc()) is not None:
        first = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, fresh.data_ptr() + fresh.nbytes - first, mmap.MADV_HUGEPAGE)


@cache
def _libc() -> ctypes.CDLL | None:
    """Return the C library where it has madvise and the system tells of pages: Linux."""
    if not PAGEMAP.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
