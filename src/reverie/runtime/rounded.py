"""Weights rounded to 8 bits: whole numbers, and what one of them means in each output channel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32, Int64, UInt8
from torch import Tensor

LARGEST = 127  # of a weight, so that the range is the same on both sides
SMALLEST = 1e-30  # of a channel's largest weight, so that no scale is denormal
PANEL, QUAD = 64, 4  # outputs and inputs that lie together in a weight of the extension's


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
