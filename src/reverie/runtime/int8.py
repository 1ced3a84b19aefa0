"""Dynamic int8 quantisation: weights are rounded to 8 bits once, activations at every call.

An approximation by choice: a quarter of the memory, and on processors that multiply 8-bit numbers (AVX512-VNNI,
AVX-VNNI, AMX) less time. Each output channel of a weight has a scale, each input one scale and one zero point of its
range, as in Jacob et al. 1712.05877, eq. 1. Sums are in 32 bits, and what leaves a layer is in floating point again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeVar

import torch
from jaxtyping import Float, Int8, Int64, UInt8
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.runtime.kernels import native
from reverie.runtime.layers import LAST, NARROW, PackedLayer, pack_together

M = TypeVar("M", bound=nn.Module)
LARGEST = 127  # of a weight, so that the range is the same on both sides
LEVELS = 255  # of an input, beside the least
PLAINLY: tuple[str, list[float], str] = ("none", [], "")  # what is done to a sum besides: nothing


@dataclass(frozen=True, eq=False)
class Rounded:
    """Hold a weight as whole numbers in oneDNN's order, and what one of them means in each output channel."""

    packed: Tensor
    scales: Float[Tensor, " out"]
    shape: torch.Size
    dtype: torch.dtype

    @cached_property
    def zeros(self) -> Int64[Tensor, " out"]:
        """Return the numbers that mean 0: the same in each channel."""
        return torch.zeros(len(self.scales), dtype=torch.int64)

    def to_dense(self) -> Tensor:
        """Return the weight's values as they were rounded."""
        rows = self.packed.to_dense()
        rows = rows.T if len(self.shape) == 2 else rows
        scales = self.scales.view(-1, *[1] * (len(self.shape) - 1))
        return (rows * scales).to(self.dtype).contiguous()


@cache
def available() -> bool:
    """Tell whether this processor multiplies 8-bit numbers, and this build of torch has the operators."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    operators = torch.ops.onednn
    wanted = ("qlinear_pointwise", "qlinear_prepack", "qconv2d_pointwise", "qconv_prepack")
    return any(has.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")) and all(
        hasattr(operators, name) for name in wanted
    )


def quantize(network: M) -> M:
    """Let a network's wide convolutions and products compute with 8-bit weights, in place, and return it.

    Each layer rounds its weight when it first computes and lets go of the original. Raises ReverieError where the
    processor cannot, and for networks on another device or in a dtype that it does not compute in.
    """
    if not available():
        raise ReverieError("this processor or this build of torch multiplies no 8-bit numbers; leave out int8")
    first = next(network.parameters())
    if first.device.type != "cpu" or not native(first.dtype):
        raise ReverieError(f"int8 is for float32 on the CPU, not for {first.dtype} on {first.device}; leave out int8")
    for module in network.modules():
        if (kind := _kind(module)) is not None:
            module.__class__ = kind
    return network


def _kind(module: nn.Module) -> type[PackedLayer] | None:
    """Choose the class of a layer; None for what is none, and for one that is narrow or cannot be rounded."""
    if type(module) is nn.Linear:
        return Int8Linear if min(module.weight.shape) >= NARROW else None
    if type(module) is not nn.Conv2d or module.groups > 1 or min(module.weight.shape[:2]) < NARROW:
        return None
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    whole = (module.kernel_size, module.stride, module.padding) == ((1, 1), (1, 1), (0, 0))
    return Int8Pointwise if whole else Int8Conv2d


@torch.no_grad()
def round_weight(weight: Float[Tensor, "out ..."]) -> tuple[Int8[Tensor, "out ..."], Float[Tensor, " out"]]:
    """Round each output channel to whole numbers from -127 to 127, and return them with their scales."""
    rows = weight.detach().float()
    scales = rows.flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST
    return (rows / scales.view(-1, *[1] * (rows.ndim - 1))).round_().to(torch.int8), scales


def round_input(x: Float[Tensor, "*shape"]) -> tuple[UInt8[Tensor, "*shape"], float, int]:
    """Round to whole numbers from 0 to 255 of the range from x's least to its largest, which takes in 0.

    Returns them with their scale and the number that means 0: x is about scale (q - zero).
    """
    low, high = min(x.amin().item(), 0.0), max(x.amax().item(), 0.0)  # aminmax takes 12 times as long in channels-last
    scale = (high - low) / LEVELS or 1.0
    zero = int(-low / scale)  # rounded down, so that nothing passes 255
    levels = torch.add(zero + 0.5, x, alpha=1 / scale)
    return levels.to(torch.int16).to(torch.uint8), scale, zero  # torch's own way from float32 takes 5 times as long


class Int8Linear(PackedLayer, nn.Linear):
    """Multiply by a rounded weight."""

    def pack(self, weight: Float[Tensor, "out in"]) -> Rounded:
        """Round and pack."""
        return _rounded_rows(weight)

    @property
    def rows(self) -> int:
        """Return the number of outputs."""
        return self.out_features

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b out"]:
        if torch.is_grad_enabled():
            return nn.Linear.forward(self, x)
        return _product(self, x)


class Int8Pointwise(PackedLayer, nn.Conv2d):
    """Convolve 1x1 as what it is, a product for each pixel."""

    def pack(self, weight: Float[Tensor, "out in 1 1"]) -> Rounded:
        """Round and pack as a linear layer's."""
        return _rounded_rows(weight.flatten(1))

    @property
    def rows(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        if torch.is_grad_enabled():
            return nn.Conv2d.forward(self, x)
        return _product(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Int8Conv2d(PackedLayer, nn.Conv2d):
    """Convolve with a rounded weight, in channels-last."""

    def pack(self, weight: Float[Tensor, "out in kh kw"]) -> Rounded:
        """Round and pack."""
        rows, scales = round_weight(weight)
        packed = torch.ops.onednn.qconv_prepack(rows, scales, 1.0, 0, *self._shape(), None)
        return Rounded(packed, scales, weight.shape, weight.dtype)

    @property
    def rows(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        if torch.is_grad_enabled():
            return nn.Conv2d.forward(self, x)
        (weight,) = pack_together([self]).parts
        q, scale, zero = round_input(x.contiguous(memory_format=LAST))
        operands = (weight.packed, weight.scales, weight.zeros, _bias(self), *self._shape())
        return torch.ops.onednn.qconv2d_pointwise.default(q, scale, zero, *operands, 1.0, 0, x.dtype, *PLAINLY)

    def _shape(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), [int(pixels) for pixels in self.padding], list(self.dilation), 1


def _rounded_rows(weight: Float[Tensor, "out in"]) -> Rounded:
    rows, scales = round_weight(weight)
    return Rounded(torch.ops.onednn.qlinear_prepack(rows, None), scales, weight.shape, weight.dtype)


def _product(layer: Int8Linear | Int8Pointwise, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b out"]:
    (weight,) = pack_together([layer]).parts
    q, scale, zero = round_input(x.contiguous())
    operands = (weight.packed, weight.scales, weight.zeros, _bias(layer))
    return torch.ops.onednn.qlinear_pointwise.default(q, scale, zero, *operands, 1.0, 0, x.dtype, *PLAINLY)


def _bias(layer: nn.Linear | nn.Conv2d) -> Float[Tensor, " out"] | None:
    return None if layer.bias is None else layer.bias.float()
