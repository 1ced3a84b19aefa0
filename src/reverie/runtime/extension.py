"""The compiled extension: kernels in C for processors with AVX2, AVX-512 or AMX, where a compiler was there for them.

`c/*.c` is compiled once for each set of instructions as reverie is installed; what is missing is computed by torch's
operators, slower. Threads are those of torch, whose OpenMP library is loaded first.

Of a small network, asking takes longer than computing: so its calls are written down once, as a `CallPlan`, and
repeated over the same memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from threading import RLock, local
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.errors import RequestWarning, warn
from reverie.models.unet import UNet
from reverie.runtime.changes import gathers_otherwise, is_hooked

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
    if has.get("amx_tile"):  # a process may use it once it asked: Linux, Documentation/arch/x86/xstate.rst
        has["amx_tile"] = getattr(torch.cpu, "_init_amx", bool)()
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

    Raises RuntimeError where there is no extension.
    """
    held = library()
    if held is None:
        raise RuntimeError("no extension was compiled for this processor")
    kernel = getattr(held, name)  # ctypes keeps it, with what it takes
    if kernel.argtypes is None:
        kernel.argtypes, kernel.restype = [*map(_type, operands)], None
    given = [operand.data_ptr() if isinstance(operand, Tensor) else operand for operand in operands]
    plan = getattr(_RECORDED, "plan", None)
    if plan is not None:
        plan.add(name, kernel, given, operands)
    if plan is None or name not in PLANNED:
        kernel(*given)


def _type(operand: Operand) -> type[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float]:
    if isinstance(operand, Tensor | None):
        return ctypes.c_void_p
    return ctypes.c_int64 if isinstance(operand, int) else ctypes.c_float


FEW = 1024  # pixels, or rows, up to which the kernels for small networks compute
SMALL = 1 << 16  # input times output channels up to which they do
# Kernels whose calls may be repeated: what they need besides their operands they take anew each time.
PLANNED = ("activate", "attention_float32", "convolve", "group_norm", "join", "layer_norm", "product")
MODES = {"plain": 0, "gelu": 1, "add": 2, "multiply": 3}  # c/products.c


@torch.no_grad()
def lay_panels(weight: Float[Tensor, "out taps in"]) -> Float[Tensor, "panels taps in columns"]:
    """Lay the rows of kernels out in panels, which the last fills up with zeros."""
    held = library()
    assert held is not None
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


_RECORDED = local()  # the plan that this thread writes
Kernel = Callable[..., None]
PlannedCall = tuple[Kernel, list[Any], list[torch.UntypedStorage | None]]
"""A kernel, what it is given, and the memory that lies at the addresses among that."""


class CallPlan:
    """Hold the calls that make something, those apart (`apart`) by themselves, and the memory that they go over.

    While it is written, nothing is computed. It is `whole` where nothing else was to be computed in between, by
    torch's operators or other kernels.
    """

    def __init__(self) -> None:
        self.calls: list[PlannedCall] = []
        self.before: list[PlannedCall] = []
        self.taken: set[int] = set()  # addresses of what memory torch gave in between
        self.whole = True

    def add(self, name: str, kernel: Kernel, given: list[Any], operands: tuple[Operand, ...]) -> None:
        """Write a call down, with its operands, whose memory is kept, even where a parameter is given other memory."""
        self.whole &= name in PLANNED
        memory = [operand.untyped_storage() if isinstance(operand, Tensor) else None for operand in operands]
        self.calls.append((kernel, given, memory))

    @contextmanager
    def record(self) -> Iterator[None]:
        """Within the block, write down what this thread calls."""
        _RECORDED.plan = self
        try:
            with _Witness(self):
                yield
        finally:
            _RECORDED.plan = None

    def share(self, made: Tensor) -> None:
        """Let memory taken for what is not `made`, nor made apart, be the same where its uses do not overlap.

        Each takes the smallest that is free and holds it, if any does, from its first use to its last.
        """
        alone = {made.untyped_storage().data_ptr()}
        alone |= {one.data_ptr() for _, _, memory in self.before for one in memory if one is not None}
        shared = self.taken - alone
        uses = [
            {one.data_ptr(): one for one in memory if one is not None and one.data_ptr() in shared}
            for _, _, memory in self.calls
        ]
        last = {start: index for index, used in enumerate(uses) for start in used}
        free: list[torch.UntypedStorage] = []
        place: dict[int, torch.UntypedStorage] = {}
        for index, ((_, given, memory), used) in enumerate(zip(self.calls, uses, strict=True)):
            for start, one in used.items():
                if start not in place:
                    fitting = [number for number, other in enumerate(free) if other.nbytes() >= one.nbytes()]
                    best = min(fitting, key=lambda number: free[number].nbytes(), default=None)
                    place[start] = one if best is None else free.pop(best)
            for position, lying in enumerate(memory):
                if lying is not None and (start := lying.data_ptr()) in used:
                    given[position] += place[start].data_ptr() - start
                    memory[position] = place[start]
            free += [place[start] for start in used if last[start] == index]

    def repeat(self, *, anew: bool) -> None:
        """Call all that was written down, over the same memory; those apart where they are wanted `anew`."""
        for kernel, given, _ in [*self.before, *self.calls] if anew else self.calls:
            kernel(*given)


@contextmanager
def apart() -> Iterator[None]:
    """Within the block, write calls down among those that need not be repeated every time: of prompts."""
    if (plan := getattr(_RECORDED, "plan", None)) is None:
        yield
        return
    calls, plan.calls = plan.calls, plan.before
    try:
        yield
    finally:
        plan.calls = calls


class _Witness(TorchDispatchMode):
    """See whether torch computes: it may take memory and view it."""

    def __init__(self, plan: CallPlan) -> None:
        super().__init__()
        self.plan = plan

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, in 1.4 s and 68 MiB

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        takes_memory, given = func.overloadpacket in MEMORY, func(*args, **(kwargs or {}))
        self.plan.whole &= func.is_view or takes_memory
        if takes_memory:
            self.plan.taken.add(given.untyped_storage().data_ptr())
        return given


MEMORY = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided)


SIZES = 4  # of which a U-Net keeps plans
_LOCK = RLock()
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(eq=False)
class PlannedLevels:
    """Hold a plan of a U-Net's levels, for one size: what it is given, and what it makes."""

    plan: CallPlan
    given: tuple[Tensor, Tensor, Tensor]
    made: Tensor
    context: tuple[Any, int] | None = None  # whose keys and values it has: a reference, and as of when

    def repeat(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """Compute anew; keys and values where the prompt is another."""
        known, self.context = self.context, None  # nobody's, should this be interrupted
        anew = known is None or known[0]() is not context or known[1] != version(context) or context.is_inference()
        for kept, given in zip(self.given[: 3 if anew else 2], (x, emb, context), strict=False):
            kept.copy_(given)
        self.plan.repeat(anew=anew)
        self.context = ref(context), version(context)
        return self.made.clone()


class FastUNet(UNet):
    """Repeat the calls that made all levels before, where the same kernels would be called.

    The first call of a size computes plainly, the second writes down. What changes a layer ends all plans: another
    module, class or weight, or a weight that was written to; with hooks, and where an attention gathers otherwise,
    they rest.
    """

    ways: dict[Any, Way] | None = None  # by size, from the second call on
    state: list[Any] | None = None  # what the plans are of
    held: list[Any] | None = None  # by whose identities and addresses the state says so

    def levels(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None,
    ) -> Float[Tensor, "b c h w"]:
        few = len(x) * math.prod(x.shape[2:]) <= FEW and max(self.config.block_out_channels) ** 2 <= SMALL
        if not few or residuals is not None or not takes(x, emb, context):
            return super().levels(x, emb, context, residuals)
        inner = tuple(_inside(self))  # hooks of the network itself are called outside
        if is_hooked(*inner) or gathers_otherwise(*inner) or _has_any_global_hook():
            return super().levels(x, emb, context, residuals)
        x = x.contiguous(memory_format=torch.channels_last)  # all as in a plan, lest other kernels round otherwise
        emb, context = emb.contiguous(), context.contiguous()
        with _LOCK:  # two threads may draw with one model
            way = self._way(inner, (x.shape, emb.shape, context.shape))
            if way != self._plainly:
                return way(x, emb, context)
        return self._plainly(x, emb, context)

    def _way(self, inner: Sequence[nn.Module], size: Any) -> Way:
        """Choose the way for a size: a plan's, or to write one; where it is new or has none, plainly."""
        weights = [weight for module in inner for weight in module._parameters.values() if weight is not None]
        shapes = [
            (conv.padding_mode, conv.padding, conv.stride, conv.dilation)
            for conv in inner
            if isinstance(conv, nn.Conv2d)
        ]
        state = [*map(id, inner), *map(type, inner), *shapes, *map(id, weights), *map(stamp, weights)]
        if self.ways is None or state != self.state or len(self.ways) > SIZES:
            self.ways, self.state = {}, state
            self.held = [*inner, *weights, *(weight.untyped_storage() for weight in weights)]
        uncounted = any(weight.is_inference() for weight in weights)
        new = self._plainly if uncounted else self._record
        way = self.ways.get(size, self._plainly)
        self.ways.setdefault(size, new)
        return way

    def _plainly(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        return super().levels(x, emb, context, None)

    def _record(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        assert self.ways is not None
        plan, size = CallPlan(), (x.shape, emb.shape, context.shape)
        with torch.inference_mode(False), torch.no_grad():  # else none of it could be written to outside the mode
            given = (x.clone(), emb.clone(), context.clone())
            with plan.record():
                made = self._plainly(*given)
            plan.share(made)
        way = self.ways[size] = PlannedLevels(plan, given, made).repeat if plan.whole else self._plainly
        return way(x, emb, context)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("ways", "state", "held")}


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """Give all modules inside a module, quicker than torch."""
    for part in module._modules.values():
        if part is not None:
            yield part
            yield from _inside(part)
