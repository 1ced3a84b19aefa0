"""What a step of an objective costs, counted without taking it.

It is taken on torch's meta device, where tensors have shapes and no content, while the storages that live at once are
counted; so recomputed layers, adapters, discriminators and teachers count as what they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.train.loop import RunSettings
from reverie.train.objective import Countable, Objective
from reverie.train.pairs import TRIES, first_readable

META = torch.device("meta")
ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
"""Operations of attention on a CPU, of whose shapes torch's counter knows nothing."""


@contextmanager
def fused_attention() -> Iterator[None]:
    """Compute attention without its weights in memory, as CPUs and GPUs do; the meta device chooses another way.

    It takes the place of torch's function, since a mode would not reach what is computed again on the way back.
    """
    plain = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)[0]

    try:
        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
        yield
    finally:
        F.scaled_dot_product_attention = plain


class PeakMemory(TorchDispatchMode):
    """Count the bytes of the storages that operations make on META, while they live, and the most that lived at once.

    Those of `known` tensors, which operations give back as views, are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.known = [tensor.untyped_storage() for tensor in known]
        self.live = dict.fromkeys(map(id, self.known), 0)
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation and count what it made."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.device != META:
                continue
            if id(storage := tensor.untyped_storage()) not in self.live:
                self.live[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage))
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key)


class Ones(TorchDispatchMode):
    """Say 1 to whoever asks a tensor on META, which has no content, for its number."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation."""
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device == META:
            return 1
        return function(*args, **(kwargs or {}))


class Repeated(Batches):
    """Serve the first example of batches in place of all."""

    def __init__(self, batches: Batches) -> None:
        _, first = first_readable(batches.items.make, 0, TRIES)
        super().__init__(batches.items.make, batches.size)
        self.first = first

    def __call__(self, step: int, part: BatchPart = WHOLE) -> Any:
        """Return the collated items of a part of a step."""
        return default_collate([self.first] * len(part.rows(range(self.size))))


def empty_(objective: Countable) -> None:
    """Leave of an objective its shapes, and of its examples the first."""
    objective.batches = Repeated(objective.batches)
    objective.move(META)


def peak_of(objective: Countable, settings: RunSettings, processes: int = 1) -> int:
    """Return the bytes that a part of a step holds at most, in float32, beside weights, optimiser and average.

    So are its gradients, unless those of a part before stand already, to which it adds, or processes share them.
    """
    weights = [weight for _, network in objective.all_networks() for weight in network.parameters()]
    stand = settings.accumulate > 1 or settings.shard
    for weight in parameters_of(objective):
        weight.grad = torch.empty_like(weight) if stand else None
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    with fused_attention(), PeakMemory([*weights, *gradients]) as memory, Ones():
        _take_step(objective, settings, processes)
    return memory.peak


def operations_of(objective: Countable, settings: RunSettings, processes: int = 1) -> int:
    """Return the multiplications and additions of products and convolutions in a step of a batch, there and back."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)  # apart: it keeps what it has seen
    with fused_attention(), counter, Ones():
        _take_step(objective, settings, processes)
    return counter.get_total_flops() * processes * settings.accumulate


def parameters_of(objective: Objective) -> list[nn.Parameter]:
    """Return all parameters that an objective learns, each once."""
    return list(dict.fromkeys(weight for group in objective.groups().values() for weight in group))


def _take_step(objective: Countable, settings: RunSettings, processes: int) -> None:
    """Compute the last step's part of one of so many processes, when all that is learned has its time."""
    part = BatchPart(0, processes * settings.accumulate, settings.accumulate)
    groups = objective.groups()
    for group, loss, _ in objective.losses(settings.steps - 1, part):
        torch.autograd.backward(loss, inputs=groups[group])
        for weight in groups[group] if part.turns == 1 else ():  # which are stepped before the next loss
            weight.grad = None
    objective.after_step()
