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
            inner = self.kept[context] = Inner(self.inner_levels(x, emb, context, residuals), [emb])
        last, skip = self.outermost, x if residuals is None else x + residuals[0]
        return last.layer(len(last.resnets) - 1, torch.cat([inner.output, skip], dim=1), emb, context)

    def inner_levels(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None,
    ) -> Float[Tensor, "b c h w"]:
        """Apply all but the last layer of the way up."""
        skips, x = self.descend(x, emb, context, residuals)
        for block in self.up_blocks[:-1]:
            x = block(x, skips, emb, context)
        for index in range(len(self.outermost.resnets) - 1):
            x = self.outermost.layer(index, torch.cat([x, skips.pop()], dim=1), emb, context)
        return x

    @property
    def outermost(self) -> UpBlock:
        """Return the last level of the way up."""
        last = self.up_blocks[-1]
        assert isinstance(last, UpBlock)
        return last


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
