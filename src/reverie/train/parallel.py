"""Data parallelism: each process takes a share of the batch; what they compute is gathered and summed.

Started by torchrun, every process holds the whole network and steps it alike. The loss of a batch is the mean of those
of its equal parts; a process may compute several, one after another (gradient accumulation).
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from reverie.data.loader import BatchPart

BUCKET = 2**23  # numbers that are summed at once: 32 MiB, so that large networks need no second copy of themselves


PATIENCE = timedelta(days=2)  # while the first process makes latents; torchrun notices by itself that one has died


@dataclass(frozen=True)
class Ranks:
    """Say which of how many processes this one is."""

    index: int = 0
    size: int = 1


def ranks() -> Ranks:
    """Return which process this is of those that have joined; alone, the first of one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def parts(turns: int) -> list[BatchPart]:
    """Return the parts of a batch that this process computes, one after another."""
    here = ranks()
    return [BatchPart(here.index * turns + turn, here.size * turns, turns) for turn in range(turns)]


def process_count() -> int:
    """Return how many processes torchrun started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this is the process that writes and speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


def is_restarted() -> bool:
    """Tell whether torchrun started this process anew, after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def first_ahead() -> Iterator[None]:
    """Let the first process go through a `with` block before the others: they find the files that it has made."""
    here = ranks()
    if here.index > 0:
        dist.barrier()
    yield
    if here.index == 0 and here.size > 1:
        dist.barrier()


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
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
        gc.collect()  # of sharded networks, which hold the group and refer to themselves


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


class _Sum(torch.autograd.Function):
    """Every process's loss depends on the sum, so the gradient of each term is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def mean_of_ranks(x: Tensor) -> Tensor:
    """Return the mean over all processes; gradients flow back to each of them."""
    size = ranks().size
    return x if size == 1 else _Sum.apply(x) / size


def average(metrics: dict[str, float]) -> dict[str, float]:
    """Return the means over all processes of numbers that each of them has."""
    means = mean_of_ranks(torch.tensor([*metrics.values()], dtype=torch.float64))
    return dict(zip(metrics, means.tolist(), strict=True))


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalise by the statistics of the rows of all processes (Peng et al. 1711.07240, section 3.2).

    torch.nn.SyncBatchNorm does so on GPUs alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the normalised map; in evaluation mode by the running statistics."""
        if not self.training:
            return super().forward(input)
        mean = mean_of_ranks(input.float().mean((0, 2, 3)))
        centred = input - mean[:, None, None]
        variance = mean_of_ranks(centred.float().square().mean((0, 2, 3)))
        count = ranks().size * input.numel() / input.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        gain = self.weight * (variance + self.eps).rsqrt()
        return (centred * gain[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def share_statistics_(network: nn.Module) -> None:
    """Let the batch normalisation of a network see the rows of all processes, where there are several."""
    for module in network.modules() if ranks().size > 1 else ():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: the whole of one that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether each process holds a part of a tensor: it is a torch.distributed.tensor.DTensor."""
    return hasattr(tensor, "to_local")


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Put the sum over all processes into every gradient that is not sharded, to the same bits in each of them."""
    if ranks().size == 1:
        return
    for gradients in _buckets([gradient for gradient in _gradients(parameters) if not is_sharded(gradient)]):
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients down to a norm of `largest` at most; return the norm that all of them had, in all processes."""
    gradients = _gradients(parameters)
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if not is_sharded(gradient)])
    if parts := [local(gradient) for gradient in gradients if is_sharded(gradient)]:
        squares = nn.utils.get_total_norm(parts).square()
        dist.all_reduce(squares)
        norm = (norm.to(squares).square() + squares).sqrt()
    torch._foreach_mul_([*map(local, gradients)], (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
