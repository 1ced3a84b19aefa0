"""Attention by a kernel in C (`c/attention.c`) where it computes as asked and is the faster; else by torch's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.models import layers
from reverie.runtime import extension

KERNELS = {torch.float32: "attention_float32", torch.bfloat16: "attention_bfloat16"}
WIDEST = 256  # width of a head up to which the kernel is the faster with AVX2; with AVX-512 it always is
WORD = 4  # bytes that the kernel moves at once: a float, or two of bfloat16


def attend(
    q: Float[Tensor, "b l d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"], heads: int
) -> Float[Tensor, "b l d"]:
    """Attend as `layers.attend` does; queries, keys and values may be slices of one product, which are not copied."""
    if not _takes(q, k, v, heads):
        return layers.attend(q, k, v, heads)
    (images, queries, wide), keys, size = q.shape, k.shape[1], q.element_size()
    gathered = torch.empty(q.shape, dtype=q.dtype)
    strides = [stride * size // WORD for x in (q, k, v) for stride in x.stride()[:2]]
    shape, width = (images, queries, keys, heads), wide // heads
    extension.call(KERNELS[q.dtype], q, k, v, gathered, *shape, width, *strides, width**-0.5)
    return gathered


def _takes(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Tell whether the kernel may take these: on the CPU, without gradients, whole words beside each other."""
    kernel = KERNELS.get(q.dtype)
    if kernel is None or torch.is_grad_enabled() or not hasattr(extension.library(), kernel):
        return False
    if not all(x.is_cpu and x.dtype == q.dtype and x.stride(2) == 1 for x in (q, k, v)):
        return False
    width = q.shape[2] // heads
    if width > WIDEST and not hasattr(extension.library(), KERNELS[torch.bfloat16]):  # compiled for AVX2
        return False
    counts = (width, *(stride for x in (q, k, v) for stride in x.stride()[:2]))
    return not any(count * q.element_size() % WORD for count in counts)
