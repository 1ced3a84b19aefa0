"""Data parallelism: each process takes a share of the batch; what they compute is gathered and summed.

Started by torchrun, every process holds the whole network and steps it alike. A loss is handed in as shares that add
up to that of the whole batch, so gradients are summed, not averaged.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ReverieError

BUCKET = 2**23  # numbers that are summed at once: 32 MiB, so that large networks need no second copy of themselves


@dataclass(frozen=True)
class Ranks:
    """Say which of how many processes this one is."""

    index: int = 0
    size: int = 1

    def share(self, batch: int) -> int:
        """Return how many items of a batch are this process's. Raises ReverieError where they cannot be shared out."""
        if batch % self.size:
            raise ReverieError(f"a batch of {batch} does not divide among {self.size} processes; give a multiple")
        return batch // self.size

    def position(self, index: int, batch: int) -> int:
        """Return where item `index` of this process's stream stands in the stream of whole batches."""
        share = self.share(batch)
        step, place = divmod(index, share)
        return step * batch + self.index * share + place


def ranks() -> Ranks:
    """Return which process this is of those that have joined; alone, the first of one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def process_count() -> int:
    """Return how many processes torchrun started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this is the process that writes and speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started for the length of a `with` block; yield the device of this one.

    They talk by NCCL where they compute on GPUs, a GPU each, and by gloo elsewhere. Alone, nothing is done.
    """
    if process_count() == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # Its functions' defaults hold the group that stands when it is first imported, which torch does when it pleases: a
    # group held so outlives its end, and its threads abort the interpreter's exit now and then.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Every process's loss depends on every feature, so a feature's gradient is the sum of what all of them found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """Return the rows of all processes, in their order; gradients flow back to the process that each came from."""
    return x if ranks().size == 1 else _Gather.apply(x.contiguous())


def total(value: Tensor) -> float:
    """Sum a number over all processes."""
    value = value.detach().clone()
    if ranks().size > 1:
        dist.all_reduce(value)
    return value.item()


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Put the sum over all processes into every gradient, to the same bits in each of them."""
    if ranks().size == 1:
        return
    for gradients in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
