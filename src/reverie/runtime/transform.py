"""Packing a network: its modules change their class, and nothing else; and device, dtype and threads to compute with.

Modules, names, parameters and hooks stay: what held on to a layer still holds it. What a layer does with its weight is
said in `weights.py`. A part that the packed kernels cannot take (another dtype or device, groups, few channels) stays
as it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any, TypeVar

import torch
from torch import nn

from reverie.errors import ReverieError, choose
from reverie.runtime import kernels
from reverie.runtime.blocks import BLOCKS
from reverie.runtime.cache import remember
from reverie.runtime.kernels import let_go
from reverie.runtime.layers import (
    NARROW,
    EdgeConv2d,
    NarrowLinear,
    PackedConv2d,
    PackedLayer,
    PackedLinear,
    PackedPointwise,
    Pointwise,
)
from reverie.runtime.weights import HELD, HeldConv2d, HeldLayer, HeldLinear, as_held, held_weights

M = TypeVar("M", bound=nn.Module)

# Inputs and outputs from which a product gains by packing more than the call costs (docs/measured/performance.md).
WIDE = 256

FAST = {fast for fast, _ in BLOCKS.values()}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    EdgeConv2d: nn.Conv2d,
    Pointwise: nn.Conv2d,
    PackedConv2d: nn.Conv2d,
    PackedPointwise: nn.Conv2d,
    PackedLinear: nn.Linear,
    NarrowLinear: nn.Linear,
    **{fast: plain for plain, (fast, _) in BLOCKS.items()},
    **{held: plain for plain, held in HELD.items()},
}
"""By the fast class: the plain one."""
KEPT = ("store", "trainable", "contexts", "corners", "seen", "panels", "composed", "planned")
"""What fast classes keep in their instances."""


def pack(network: M, folder: Path | None = None) -> M:
    """Let a network compute fast on the CPU, in place, and return it; where nothing of it can, leave it as it was.

    Nothing is computed yet: each layer packs its weight when it first computes, or finds it packed in `folder`, where
    an earlier process kept it; what is not there is kept for later ones.
    """
    if not kernels.available():
        return network
    modules = list(network.modules())[::-1]  # parts before what holds them
    layers = [(module, layer) for module in modules if (layer := _layer(module)) is not None]
    if not any(issubclass(layer, PackedLayer) for _, layer in layers) and not is_packed(network):
        return network  # all narrow: a tower that is packed late must not round otherwise from then on
    for module, layer in layers:
        module.__class__ = layer
    for module in modules:
        if type(module) in (nn.Conv2d, HeldConv2d):
            assert isinstance(module, nn.Conv2d)
            if isinstance(module, HeldLayer) and not _is_pointwise(module):
                module.release()
            module.__class__ = Pointwise if _is_pointwise(module) else EdgeConv2d
        elif type(module) in BLOCKS:
            block, needed = BLOCKS[type(module)]
            if all(_takes_more(module.get_submodule(name)) for name in needed):
                module.__class__ = block
    if folder is not None:
        remember(held_weights(network), folder)
    return network


def pack_after(calls: int, network: nn.Module) -> None:
    """Pack a network once it has been called so often: one that computes little would not earn its packing before.

    Until then it is one that is seldom called, and lets its file's pages go after every call.
    """
    left = iter(range(calls - 1))

    def count(module: nn.Module, inputs: object, output: object) -> None:
        for _, weight in held_weights(module):
            let_go(weight)
        if next(left, None) is None:
            handle.remove()
            pack(module)

    handle = network.register_forward_hook(count)


def unpack(network: M) -> M:
    """Make a fast network plain again, in place, and return it; every weight is what it was, bit by bit."""
    for module in network.modules():
        if isinstance(module, HeldLayer):
            module.release()
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
            for name in KEPT:
                module.__dict__.pop(name, None)
    return network


def is_packed(network: nn.Module) -> bool:
    """Tell whether a network was made fast."""
    return any(isinstance(module, PackedLayer) for module in network.modules())


def _takes_more(module: nn.Module) -> bool:
    """Tell whether a module was made fast, and so takes what is to be added."""
    return isinstance(module, PackedLayer | NarrowLinear | Pointwise) or type(module) in FAST


def _layer(module: nn.Module) -> type[PackedLayer | NarrowLinear] | None:
    """Choose the packed class of a layer; None for what is no layer, and for one that cannot or need not be packed."""
    if type(module) not in (nn.Linear, nn.Conv2d, HeldLinear, HeldConv2d):
        return None
    weight = as_held(module)
    dtype = module.dtype if isinstance(module, HeldLayer) else weight.dtype
    if not kernels.native(dtype) or weight.device.type != "cpu":
        return None
    width = min(weight.shape[:2])
    if not isinstance(module, nn.Conv2d):
        return PackedLinear if width >= WIDE else NarrowLinear
    if module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    if _is_pointwise(module):
        return PackedPointwise if width >= WIDE else None
    return PackedConv2d if width >= NARROW else None


def _is_pointwise(module: nn.Conv2d) -> bool:
    """Tell whether a convolution is a product for each pixel, between images that are wide enough."""
    one = (module.kernel_size, module.stride, module.padding, module.groups) == ((1, 1), (1, 1), (0, 0), 1)
    return one and min(as_held(module).shape[:2]) >= NARROW


CONTROL = Path("/sys/fs/cgroup")
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which people choose themselves
SMALL = 2048  # numbers of an input up to which one thread computes: latents of 16x16, guided
_OUTSIDE = local()  # how many threads there were before the networks that this thread computes with were called


def limit_threads(environment: Mapping[str, str] = os.environ, control: Path = CONTROL) -> None:
    """Let torch use no more threads than a container's limit lets run, which it does not look at by itself.

    It never uses more than before, and nothing changes where the environment says how many.
    """
    limit = quota(control)
    if limit is not None and not _threads_chosen(environment):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), math.ceil(limit))))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: its sums are the same on every machine, and processes that share the cores do not wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spare_threads(network: nn.Module, environment: Mapping[str, str] = os.environ) -> None:
    """Let a network on the CPU compute on one thread where its input is small; nothing changes around its calls.

    It is for networks of small operations, for whose sake freed memory waits for its next use, too. The threads stay
    as they are where the environment says how many to use.
    """
    kernels.hold_memory()
    if not _threads_chosen(environment):
        network.register_forward_pre_hook(_enter)
        network.register_forward_hook(_leave, always_call=True)


def _threads_chosen(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in CHOSEN)


def _enter(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    _OUTSIDE.__dict__.setdefault("counts", []).append(torch.get_num_threads())
    if inputs[0].device.type == "cpu" and inputs[0].numel() <= SMALL:
        torch.set_num_threads(1)


def _leave(network: nn.Module, inputs: object, output: object) -> None:
    torch.set_num_threads(_OUTSIDE.counts.pop())


def quota(control: Path = CONTROL) -> float | None:
    """Return how many processors' time the control group grants, None where it sets no limit or there is no group."""
    try:
        if (unified := control / "cpu.max").is_file():
            granted, period = unified.read_text().split()
        else:
            granted, period = (
                (control / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return int(granted) / int(period) if granted not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def to_channels_last(network: nn.Module) -> None:
    """Lay the kernels of convolutions out as GPUs convolve fastest; images follow the layout of the kernels."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str | torch.device) -> torch.device:
    """Turn a name into a device that is there; "auto" prefers a GPU. Raises ReverieError for one that is not."""
    found = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device(found[-1])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ReverieError(f"unknown device '{name}'; choose from auto, {', '.join(found)}") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in found or (device.index or 0) >= count:
        raise ReverieError(f"device '{name}' is not available here; choose from auto, {', '.join(found)}")
    return device


def pick_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Turn a name into a dtype; None is float16 on CUDA and float32 elsewhere."""
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(name, str):
        return choose("dtype", name, DTYPES)
    return name
