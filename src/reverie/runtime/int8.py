"""Dynamic int8 quantisation: weights are rounded to 8 bits once, activations at every call.

An approximation by choice: a quarter of the memory, and on processors that multiply 8-bit numbers (AVX512-VNNI,
AVX-VNNI, AMX) less time. Each output channel of a weight has a scale, and each row or image that is multiplied a scale
and a zero point of its range, as in Jacob et al. 1712.05877, eq. 1. Sums are in 32 bits, and what leaves a layer is in
floating point again.

The compiled extension (`c/int8.c`) rounds as it normalises, and adds and activates as it multiplies; without it oneDNN
multiplies, whose inputs are rounded by torch, and have one range a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, UInt8
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models import layers
from reverie.models.layers import ResidualBlock
from reverie.models.unet import UNet, UpBlock
from reverie.runtime import blocks, extension
from reverie.runtime.blocks import CORNERS, computes_plainly, corner_kernel
from reverie.runtime.cache import remember
from reverie.runtime.changes import gathers_otherwise, is_hooked
from reverie.runtime.kernels import QUAD, OneDNNWeight, Panels, Rounded, check_shape, native, pack_panels, round_weight
from reverie.runtime.layers import LAST, NARROW, EdgeConv2d, PackedLayer, PackedLinear, PackedPointwise, pack_together
from reverie.runtime.weights import HeldConv2d, HeldLayer, HeldLinear, as_held, held_weights

M = TypeVar("M", bound=nn.Module)
LEVELS = 255  # of an input, beside the least
KNOWN = 65  # numbers that `round_images` in C keeps of each channel
PLAINLY: tuple[str, list[float], str] = ("none", [], "")  # what oneDNN does to a sum besides: nothing


@cache
def available() -> bool:
    """Tell whether this processor multiplies 8-bit numbers, and this build of torch has the operators."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    operators = torch.ops.onednn
    wanted = ("qlinear_pointwise", "qlinear_prepack", "qconv2d_pointwise", "qconv_prepack")
    return any(has.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")) and all(
        hasattr(operators, name) for name in wanted
    )


def fuses() -> bool:
    """Tell whether the extension is there and multiplies 8-bit numbers."""
    return hasattr(extension.library(), "convolve_int8")


def quantize(network: M, folder: Path | None = None) -> M:
    """Let a network's wide convolutions and products compute with 8-bit weights, in place, and return it.

    Each layer rounds its weight when it first computes and lets go of the original, or finds it rounded in `folder`, as
    `transform.pack` does. Raises ReverieError where the processor cannot, and for networks on another device or in a
    dtype that it does not compute in.
    """
    if not available():
        raise ReverieError("this processor or this build of torch multiplies no 8-bit numbers; leave out int8")
    first = next(network.parameters())
    if first.device.type != "cpu" or not native(first.dtype):
        raise ReverieError(f"int8 is for float32 on the CPU, not for {first.dtype} on {first.device}; leave out int8")
    for module in list(network.modules())[::-1]:  # parts before what holds them
        if (kind := _kind(module)) is not None:
            if isinstance(module, HeldLayer) and not issubclass(kind, HeldLayer):
                module.release()
            module.__class__ = kind
        elif type(module) in BLOCKS:
            block, needed = BLOCKS[type(module)]
            if all(isinstance(module.get_submodule(name), QUANTIZED) for name in needed):
                module.__class__ = block
    if folder is not None:
        remember(held_weights(network), folder)
    return network


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """Choose the class of a layer; None for what is none, and for one that is narrow or cannot be rounded."""
    if type(module) in (nn.Linear, HeldLinear):
        return Int8Linear if min(as_held(module).shape) >= NARROW else None
    if type(module) not in (nn.Conv2d, HeldConv2d):
        return None
    assert isinstance(module, nn.Conv2d)
    if min(as_held(module).shape[:2]) < NARROW:
        return EdgeConv2d
    if module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    whole = (module.kernel_size, module.stride, module.padding) == ((1, 1), (1, 1), (0, 0))
    return Int8Pointwise if whole else Int8Conv2d


def pack_rows(weight: Float[Tensor, "out in"]) -> Rounded:
    """Round and pack the weight of a product."""
    if fuses():
        return pack_panels(weight)
    rows, scales = round_weight(weight)
    return OneDNNWeight(torch.ops.onednn.qlinear_prepack(rows, None), scales, weight.shape, weight.dtype)


def round_input(x: Float[Tensor, "*shape"]) -> tuple[UInt8[Tensor, "*shape"], float, int]:
    """Round to whole numbers from 0 to 255 of the range from x's least to its largest, which takes in 0.

    Returns them with their scale and the number that means 0: x is about scale (q - zero).
    """
    low, high = min(x.amin().item(), 0.0), max(x.amax().item(), 0.0)  # aminmax takes 12 times as long in channels-last
    scale = (high - low) / LEVELS or 1.0
    zero = int(-low / scale)  # rounded down, so that nothing passes 255
    levels = torch.add(zero + 0.5, x, alpha=1 / scale)
    return levels.to(torch.int16).to(torch.uint8), scale, zero  # torch's own way from float32 takes 5 times as long


@dataclass(frozen=True, eq=False)
class Levels:
    """Hold rows or images as whole numbers from 0 to 255, with a scale and a zero point for each row or image."""

    q: UInt8[Tensor, "images height width channels"]  # with what is padded; rows are one image of height 1
    scales: Float[Tensor, " n"]
    zeros: Int32[Tensor, " n"]
    shape: tuple[int, ...]  # of what multiplying gives, but for the outputs
    dtype: torch.dtype
    is_cpu = True

    @classmethod
    def empty(cls, size: tuple[int, int, int, int], ranges: int, shape: tuple[int, ...], dtype: torch.dtype) -> Levels:
        """Return levels without values; a quad may be read beyond their end."""
        q = torch.empty(prod(size) + QUAD, dtype=torch.uint8, device="cpu")[:-QUAD].view(size)
        zeros = torch.empty(ranges, dtype=torch.int32, device="cpu")
        return cls(q, torch.empty(ranges, **extension.FLOATS), zeros, shape, dtype)


def round_rows(x: Float[Tensor, "*b d"], norm: nn.LayerNorm | None = None) -> Levels:
    """Round each row by its own range, after a LayerNorm where one is given."""
    x, width = x.contiguous(), x.shape[-1]
    count = x.numel() // width
    levels = Levels.empty((1, 1, count, width), count, tuple(x.shape[:-1]), x.dtype)
    weight, bias = (None, None) if norm is None else (_floats(norm.weight), _floats(norm.bias))
    eps = 0.0 if norm is None else norm.eps
    made = (levels.q, levels.scales, levels.zeros)
    extension.call("round_rows", x, *made, weight, bias, count, width, _half(x.dtype), float(eps))
    return levels


def round_images(
    x: Float[Tensor, "b c h w"],
    padding: Sequence[int] = (0, 0),
    norm: nn.GroupNorm | None = None,
    *,
    silu: bool = False,
) -> Levels:
    """Round each image by its own range, after a GroupNorm and a SiLU where asked for, and pad it (height, width)."""
    x = x.contiguous(memory_format=LAST)
    images, channels, height, width = x.shape
    size = (images, height + 2 * padding[0], width + 2 * padding[1], channels)
    levels = Levels.empty(size, images, (images, height * width), x.dtype)
    weight, bias = (None, None) if norm is None else (_floats(norm.weight), _floats(norm.bias))
    groups, eps = (1, 0.0) if norm is None else (norm.num_groups, norm.eps)
    made = (levels.q, levels.scales, levels.zeros)
    known, shape = torch.empty(images, KNOWN, channels, dtype=torch.float64), (images, height, width, channels, groups)
    how = (*padding, int(silu), _half(x.dtype), float(eps))
    extension.call("round_images", x, *made, weight, bias, known, *shape, *how)
    return levels


def product(
    x: Levels,
    weight: Panels,
    bias: Float[Tensor, " out"] | None,
    add: Float[Tensor, "*b out"] | None = None,
    gate: tuple[Panels, Float[Tensor, " out"] | None] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*b out"]:
    """Multiply rows by a weight, in the same pass multiply by the GELU of what `gate` makes, and add.

    Raises ReverieError where `add` is of another shape than the product.
    """
    outputs, count = weight.shape[0], prod(x.shape)
    y = torch.empty((*x.shape, outputs), dtype=dtype or x.dtype, device="cpu")
    if add is not None:
        check_shape(add, y.shape)
    width = x.q.shape[3]
    size = (1, 1, count, width, outputs, 0, 0, width, 0, 0, outputs)
    added = None if add is None else add.contiguous()
    _call(x, weight, bias, gate, None, added, y, size, (1, 1, 0, 0, 1, 1), count // len(x.scales))
    return y


def convolve(
    x: Levels,
    weight: Panels,
    bias: Float[Tensor, " out"] | None,
    add: Float[Tensor, "b out #h2 #w2"] | None,
    y: Float[Tensor, "b out h2 w2"],
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    origin: tuple[int, int] = (0, 0),
) -> Float[Tensor, "b out h2 w2"]:
    """Convolve padded images into `y`, and in the same pass add `add`, which may be one pixel for all.

    `origin` is the pixel of the padded images that the first output sees first. Raises ReverieError where `add` is of
    another shape.
    """
    images, outputs, height, width = y.shape
    shift = None
    if add is not None:
        check_shape(add, (*y.shape[:2], *(add.shape[2:] if add.shape[2:] == (1, 1) else y.shape[2:])))
    if add is not None and add.shape[2:] == (1, 1):
        shift, add = add.flatten(1).float().contiguous(), None
    q = x.q[:, origin[0] :, origin[1] :]
    apart = (*q.stride()[:3], y.stride(0), y.stride(2), y.stride(3))
    size = (images, height, width, q.shape[3], outputs, *apart)
    added = None if add is None else add.contiguous(memory_format=LAST)
    _call(x, weight, bias, None, shift, added, y, size, (*weight.shape[2:], *dilation, *stride), height * width, q)
    return y


def _call(
    x: Levels,
    weight: Panels,
    bias: Tensor | None,
    gate: tuple[Panels, Tensor | None] | None,
    shift: Tensor | None,
    add: Tensor | None,
    y: Tensor,
    size: tuple[int, ...],
    taps: tuple[int, ...],
    per: int,
    q: Tensor | None = None,
) -> None:
    """Call the extension: `c/int8.c` says what all the numbers are."""
    one = (weight.packed, weight.scales, weight.totals, _floats(bias))
    other = (None,) * 4 if gate is None else (gate[0].packed, gate[0].scales, gate[0].totals, _floats(gate[1]))
    added = None if add is None else add.to(y.dtype)
    seen = x.q if q is None else q
    tensors = (seen, x.scales, x.zeros, *one, *other, shift, added, y)
    extension.call("convolve_int8", *tensors, *size, *taps, per, _half(y.dtype))


def _floats(values: Tensor | None) -> Float[Tensor, " n"] | None:
    return values if values is None or values.dtype == torch.float32 else values.detach().float()


def _half(dtype: torch.dtype) -> int:
    return int(dtype == torch.bfloat16)


def multiply(
    x: Float[Tensor, "*b d"] | Levels,
    weight: Rounded,
    bias: Float[Tensor, " out"] | None,
    *,
    add: Float[Tensor, "*b out"] | None = None,
) -> Float[Tensor, "*b out"]:
    """Multiply rows, rounded already or not, by a rounded weight, and add `add`."""
    if isinstance(weight, Panels):
        return product(x if isinstance(x, Levels) else round_rows(x), weight, bias, add)
    assert isinstance(weight, OneDNNWeight)
    assert isinstance(x, Tensor)
    q, scale, zero = round_input(x.contiguous())
    operands = (weight.packed, weight.scales, weight.zeros, _floats(bias))
    y = torch.ops.onednn.qlinear_pointwise.default(q, scale, zero, *operands, 1.0, 0, x.dtype, *PLAINLY)
    return y if add is None else y + add


class Int8Layer(PackedLayer):
    """Be a layer with a rounded weight; comes before the packed class among a layer's bases."""

    def form(self) -> str:
        """Say whose order it is in."""
        return f"{type(self).__name__} {'in panels' if fuses() else 'by oneDNN'}"


class Int8Linear(Int8Layer, PackedLinear):
    """Multiply by a rounded weight."""

    pack = staticmethod(pack_rows)
    multiply = staticmethod(multiply)


class Int8Pointwise(Int8Layer, PackedPointwise):
    """Convolve 1x1 as what it is, a product for each pixel, by a rounded weight."""

    multiply = staticmethod(multiply)

    @staticmethod
    def pack(weight: Float[Tensor, "out in 1 1"]) -> Rounded:
        """Round and pack as a linear layer's."""
        return pack_rows(weight.flatten(1))


class Int8Conv2d(Int8Layer, nn.Conv2d):
    """Convolve with a rounded weight, in channels-last."""

    def pack(self, weight: Float[Tensor, "out in kh kw"]) -> Rounded:
        """Round and pack."""
        if fuses():
            return pack_panels(weight)
        rows, scales = round_weight(weight)
        packed = torch.ops.onednn.qconv_prepack(rows, scales, 1.0, 0, *self._shape(), None)
        return OneDNNWeight(packed, scales, weight.shape, weight.dtype)

    @property
    def rows(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def forward(
        self, x: Float[Tensor, "b c h w"], add: Float[Tensor, "b out #h2 #w2"] | None = None
    ) -> Float[Tensor, "b out h2 w2"]:
        """Return the convolution of x plus `add`, which may be one pixel for all."""
        if not self.computes(x):
            y = nn.Conv2d.forward(self, x)
            return y if add is None else y + add
        (weight,) = pack_together([self]).parts
        if isinstance(weight, Panels):
            return self.convolve(round_images(x, self._shape()[1]), add)
        q, scale, zero = round_input(x.contiguous(memory_format=LAST))
        operands = (weight.packed, weight.scales, weight.zeros, _floats(self.bias), *self._shape())
        y = torch.ops.onednn.qconv2d_pointwise.default(q, scale, zero, *operands, 1.0, 0, x.dtype, *PLAINLY)
        return y if add is None else y + add

    def convolve(self, x: Levels, add: Float[Tensor, "b out #h2 #w2"] | None = None) -> Float[Tensor, "b out h2 w2"]:
        """Return the convolution of images that are rounded and padded already, plus `add`."""
        (weight,) = pack_together([self]).parts
        sides = zip(x.q.shape[1:3], self.kernel_size, self.stride, self.dilation, strict=True)
        size = [(side - apart * (taps - 1) - 1) // stride + 1 for side, taps, stride, apart in sides]
        y = torch.empty((len(x.q), self.out_channels, *size), dtype=x.dtype, device="cpu", memory_format=LAST)
        return convolve(x, weight, self.bias, add, y, self.stride, self.dilation)

    def _shape(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), [int(pixels) for pixels in self.padding], list(self.dilation), 1


class Int8ResidualBlock(blocks.FastResidualBlock):
    """Round as the norms and SiLUs compute, and take embedding and input along with the convolutions."""

    conv1: Int8Conv2d  # type: ignore[assignment]
    conv2: Int8Conv2d  # type: ignore[assignment]

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        watched = is_hooked(self.norm1, self.conv1, self.norm2, self.conv2)
        if watched or not fuses() or not self.conv1.computes(x):
            return super().forward(x, emb)
        shift = None
        if self.time_emb_proj is not None and emb is not None:
            shift = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv1.convolve(round_images(x, (1, 1), self.norm1, silu=True), shift)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self.conv2.convolve(round_images(h, (1, 1), self.norm2, silu=True), shortcut)


class Int8Upsample(blocks.FastUpsample):
    """Enlarge by two by the four kernels of a doubled pixel's corners, on the small image rounded once."""

    conv: Int8Conv2d  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
        doubled = (2 * x.shape[2], 2 * x.shape[3])
        plain = is_hooked(self.conv) or self.conv.padding != (1, 1) or size not in (None, doubled)
        if plain or not fuses() or not self.conv.computes(x):
            return layers.Upsample.forward(self, x, size)
        seen = round_images(x, (1, 1))
        y = torch.empty((len(x), self.conv.out_channels, *doubled), dtype=x.dtype, device="cpu", memory_format=LAST)
        for (top, left), weight in zip(CORNERS, self.by_corner(torch.Size()), strict=True):
            convolve(seen, weight, self.conv.bias, None, y[:, :, top::2, left::2], origin=(top, left))
        return y

    def pack_corner(self, weight: Float[Tensor, "out in 3 3"], corner: tuple[int, ...], size: torch.Size) -> Panels:
        """Round and pack for any size; what is added up is rounded before, as for those who read the weight later."""
        rows, scales = round_weight(weight)
        return pack_panels(corner_kernel(rows * scales.view(-1, 1, 1, 1), *corner))


class Int8GEGLU(blocks.FastGEGLU):
    """Take gate and GELU along with the product."""

    def forward(self, x: Any) -> Any:
        """Return the gated tokens (b, l, hidden) of tokens (b, l, d), as levels where those are levels."""
        if is_hooked(self.proj) or not fuses() or not self.proj.computes(x):
            return layers.GEGLU.forward(self, x)
        kept, gate = pack_together([self.proj], parts=2).parts
        biases = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        if isinstance(x, Tensor):
            return product(round_rows(x), kept, biases[0], gate=(gate, biases[1]))
        gated = product(x, kept, biases[0], gate=(gate, biases[1]), dtype=torch.bfloat16)
        return replace(round_rows(gated), dtype=x.dtype)


class Int8Attention(blocks.FastAttention):
    """Gather in bfloat16 what the tokens' levels give, which no 8-bit product can tell from float32."""

    def forward(
        self, x: Any, context: Float[Tensor, "b m e"] | None = None, add: Float[Tensor, "b l d"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Return what tokens (b, l, d), or their levels, gather, plus `add`."""
        if isinstance(x, Tensor) or gathers_otherwise(self):
            return super().forward(x, context, add)
        inputs = [self.to_q, self.to_k, self.to_v] if context is None else [self.to_q]
        store = pack_together(inputs)
        made = product(x, store.parts[0], None, dtype=torch.bfloat16).split([layer.rows for layer in inputs], dim=-1)
        if context is None:
            keys, values = made[1:]
        else:
            with extension.apart():
                keys, values = (part.bfloat16() for part in self.keys_values(context))
        gathered = round_rows(self.attend(made[0], keys, values, self.heads))
        last = cast(PackedLayer, self.to_out[0])
        (weight,) = pack_together([last]).parts
        return product(replace(gathered, dtype=x.dtype), weight, cast(Tensor, last.bias), add)


class Int8TransformerBlock(blocks.FastTransformerBlock):
    """Round as the norms compute, once for query, key and value."""

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l d"]:
        last = cast(PackedLayer, self.ff.get_submodule("net.2"))
        if computes_plainly(*self.modules()) or not fuses() or not last.computes(x):
            return super().forward(x, context)
        x = self.attn1(round_rows(x, self.norm1), context if self.only_cross else None, add=x)
        x = self.attn2(round_rows(x, self.norm2), context, add=x)
        return self.ff(round_rows(x, self.norm3), add=x)


class Int8SpatialTransformer(blocks.FastSpatialTransformer):
    """Round as the norm computes; image and tokens are one tensor, and both kinds of projections one product."""

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b l d"]) -> Float[Tensor, "b c h w"]:
        if (
            computes_plainly(self.norm, self.proj_in, self.proj_out)
            or not fuses()
            or not cast(PackedLayer, self.proj_in).computes(x)
        ):
            return super().forward(x, context)
        (weight,) = pack_together([cast(PackedLayer, self.proj_in)]).parts
        h = product(round_images(x, norm=self.norm), weight, self.proj_in.bias)
        for block in self.transformer_blocks:
            h = block(h, context)
        (weight,) = pack_together([cast(PackedLayer, self.proj_out)]).parts
        tokens = layers.to_tokens(x.contiguous(memory_format=LAST))
        return layers.to_image(product(round_rows(h), weight, self.proj_out.bias, tokens), *x.shape[2:])


# By the plain class: the one that computes with rounded weights, and which of its parts have to, themselves.
BLOCKS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    nn.GroupNorm: blocks.BLOCKS[nn.GroupNorm],
    layers.GroupNormSiLU: blocks.BLOCKS[layers.GroupNormSiLU],
    ResidualBlock: (Int8ResidualBlock, ("conv1", "conv2")),
    layers.Upsample: (Int8Upsample, ("conv",)),
    layers.Attention: (Int8Attention, ("to_q", "to_k", "to_v", "to_out.0")),
    layers.GEGLU: (Int8GEGLU, ("proj",)),
    layers.FeedForward: (blocks.FastFeedForward, ("net.0", "net.2")),
    layers.TransformerBlock: (Int8TransformerBlock, ("attn1", "attn2", "ff")),
    layers.SpatialTransformer: (Int8SpatialTransformer, ("proj_in", "proj_out")),
    UpBlock: blocks.BLOCKS[UpBlock],
    UNet: blocks.BLOCKS[UNet],
}
QUANTIZED = (Int8Linear, Int8Pointwise, Int8Conv2d, Int8GEGLU, blocks.FastAttention, blocks.FastFeedForward)
