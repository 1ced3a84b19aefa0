"""What need a U-Net not compute at every step? Its inner levels, whose output hardly changes from step to step.

Source: Ma et al. 2312.00858, "DeepCache": only the outermost layers are computed anew, on what the inner ones gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from reverie.models.unet import UNet, UpBlock


@dataclass
class Inner:
    """Hold what the inner levels gave, and the embeddings of the timesteps that it has served, the first its own."""

    output: Tensor
    served: list[Tensor]


class ReusingUNet(UNet):
    """Compute the inner levels at the first of every `every` timesteps alone, for each context by itself.

    The outermost is the last layer of the way up, which joins what `conv_in` made. A sampler that asks twice at one
    timestep is served as at one step.
    """

    every: int
    kept: WeakTensorKeyDictionary  # context -> Inner, for as long as the context lives

    def levels(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None,
    ) -> Float[Tensor, "b c h w"]:
        inner = self.kept.get(context)
        if inner is not None and not any(torch.equal(emb, seen) for seen in inner.served):
            inner.served.append(emb)
        if inner is None or len(inner.served) > self.every:
            skips, middle = self.descend(x, emb, context, residuals)
            inner = self.kept[context] = Inner(self.ascend(middle, skips[1:], emb, context), [emb])
        outermost, skip = self.up_blocks[-1], x if residuals is None else x + residuals[0]
        assert isinstance(outermost, UpBlock)
        return outermost.layer(len(outermost.resnets) - 1, torch.cat([inner.output, skip], dim=1), emb, context)


@contextmanager
def reusing(unet: UNet, every: int) -> Iterator[None]:
    """Within the block, let a U-Net compute its inner levels once for `every` timesteps; 1 changes nothing."""
    if every == 1:
        yield
        return
    plain, unet.__class__ = type(unet), ReusingUNet
    changed = cast(ReusingUNet, unet)
    changed.every, changed.kept = every, WeakTensorKeyDictionary()
    try:
        yield
    finally:
        del changed.every, changed.kept
        unet.__class__ = plain
