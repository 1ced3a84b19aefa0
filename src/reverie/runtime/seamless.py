"""How do a picture's opposite edges come to fit each other? The convolutions read around the edge, as on a torus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]


@contextmanager
def seamless(networks: Iterable[nn.Module], axes: str) -> Iterator[None]:
    """Within the block, let the convolutions of `networks` wrap along "x" (left to right), "y" (top to bottom) or "xy".

    Along "" nothing is touched, so that fast layers stay fast. Afterwards the networks are as they were. Attention and
    normalisation know no edges, so a picture whose latents are rolled is the rolled picture, for whole multiples of the
    lowest level's cells.
    """
    layers = (layer for network in networks for layer in network.modules()) if axes else ()
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d) and any(layer.padding)]
    before = [conv.padding for conv in convolutions]
    hooks = []
    try:
        for conv in convolutions:
            height, width = (int(pixels) for pixels in conv.padding)
            y, x = height * ("y" in axes), width * ("x" in axes)
            hooks.append(conv.register_forward_pre_hook(_around(y, x)))
            conv.padding = (height - y, width - x)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for conv, padding in zip(convolutions, before, strict=True):
            conv.padding = padding


def _around(y: int, x: int) -> Hook:
    """Pad a convolution's input by its own other side: y rows and x columns."""
    return lambda _, inputs: (F.pad(inputs[0], (x, x, y, y), mode="circular"),)
