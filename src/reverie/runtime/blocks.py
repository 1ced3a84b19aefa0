"""Fused blocks: sums and activations are taken along by the kernels of the layers before them.

Each computes what its plain class in `models/layers.py` and `models/clip.py` computes (a third forward is that of
`codecs/image.py`, in strips), which it falls back to with gradients and where a part of it is hooked: then every layer
is called as it stands in the plain class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from reverie.models import clip, layers
from reverie.models.autoencoder import TinyBlock, TinyDecoder, TinyEncoder
from reverie.models.layers import GroupNormSiLU, ResidualBlock, Upsample
from reverie.models.unet import UNet, UpBlock
from reverie.runtime import extension, kernels, winograd
from reverie.runtime.cache import keep
from reverie.runtime.changes import is_hooked
from reverie.runtime.extension import FEW, convolve_small, lay_panels, multiply, silu, stamp, version
from reverie.runtime.kernels import trim
from reverie.runtime.layers import (
    LAST,
    FastGroupNorm,
    FastGroupNormSiLU,
    FastLayerNorm,
    NarrowLinear,
    PackedConv2d,
    PackedLayer,
    PackedLinear,
    attend,
    pack_together,
    project,
)
from reverie.runtime.plans import FastUNet
from reverie.runtime.weights import as_held

CORNERS = tuple(product((0, 1), repeat=2))
"""The corners of a doubled pixel: (0, 0) is above on the left."""
LARGE = 2**23  # numbers of an image whose memory comes from the system anew (32 MiB): then the small ones' goes back
SMALL = 129  # pixels of a batch below which four kernels gain too little for their memory
SHAPE = ((1, 1), (1, 1), (1, 1))  # stride, padding and dilation of their convolutions


class FastUpsample(Upsample):
    """Enlarge by two without ever making the image of repeated pixels; the convolution's own weight stays plain."""

    conv: PackedConv2d
    # Of which weight, as of when and for which size: packed by corner.
    corners: tuple[Tensor, tuple[Any, ...], list[Any]] | None = None

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
        height, width = x.shape[2:]
        odd = size not in (None, (2 * height, 2 * width)) or self.conv.padding != (1, 1)
        if odd or is_hooked(self.conv) or not self.conv.computes(x):
            return super().forward(x, size)
        x = x.contiguous(memory_format=LAST)
        if type(self.conv) is PackedConv2d and self.conv.is_small(x):
            return convolve_small(x, self.by_corner_in_panels(), self.conv.bias, self.conv.out_channels, doubled=True)
        shape = (len(x), self.conv.out_channels, 2 * height, 2 * width)
        if math.prod(shape) >= LARGE:
            trim()
        if x.dtype == torch.float32 and self.conv.doubles(x):  # in bfloat16 the corners win
            return winograd.conv2d(x, self.conv.weight, self.conv.bias, doubled=True)
        if len(x) * height * width < SMALL:
            return super().forward(x, size)
        enlarged = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)
        for (top, left), weight in zip(CORNERS, self.by_corner(x.shape), strict=True):
            # Padded on all sides, the image has a row and a column more than a corner sees.
            seen = kernels.conv2d(x, weight, self.conv.bias, *SHAPE)
            enlarged[:, :, top::2, left::2] = seen[:, :, top : top + height, left : left + width]
        return enlarged

    def pack_corner(self, weight: Float[Tensor, "out in 3 3"], corner: tuple[int, ...], size: torch.Size) -> Any:
        """Pack a corner's kernel for images of a size."""
        return kernels.pack_conv2d(corner_kernel(weight, *corner), size, *SHAPE)

    def by_corner_in_panels(self) -> Tensor:
        """Return the four kernels for small images, made anew where the weight is another or was written to."""
        held = as_held(self.conv)
        state = "panels", *stamp(held)
        if self.corners is None or self.corners[0] is not held or self.corners[1] != state:
            weight = held.to(self.conv.dtype)
            kernels = [corner_kernel(weight, *corner).flatten(2).mT for corner in CORNERS]
            self.corners = held, state, [torch.cat([lay_panels(kernel) for kernel in kernels])]
        return self.corners[2][0]

    def by_corner(self, size: torch.Size) -> list[Any]:
        """Return the four packed kernels, made anew where the weight is another or was written to, or the size is."""
        held = as_held(self.conv)
        state = version(held), size[2:]
        if self.corners is None or self.corners[0] is not held or self.corners[1] != state:

            def pack() -> list[Any]:
                weight = held.to(self.conv.dtype)
                return [self.pack_corner(weight, corner, size) for corner in CORNERS]

            kept = keep([held], f"corners for {size}", pack)
            self.corners = held, state, kept
        return self.corners[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "corners"}


def corner_kernel(weight: Float[Tensor, "out in 3 3"], top: int, left: int) -> Float[Tensor, "out in 2 2"]:
    """Add up the rows and columns of a kernel that fall on one pixel, seen from a corner of a doubled pixel."""
    return _pairs(_pairs(weight, 2, top), 3, left)


def _pairs(weight: Tensor, axis: int, last: int) -> Tensor:
    """Add the last two of three along an axis, or the first two."""
    first, middle, third = weight.detach().unbind(axis)
    return torch.stack([first + middle, third] if last else [first, middle + third], dim=axis)


def computes_plainly(*modules: nn.Module) -> bool:
    """Tell whether to compute as the plain class does: by torch's operators, or where one of `modules` is hooked."""
    return extension.operators_compute() or is_hooked(*modules)


class FastResidualBlock(ResidualBlock):
    """Take the embedding along with the first convolution, and the input with the second."""

    conv1: PackedConv2d
    conv2: PackedConv2d

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        convolutions = (self.conv1, self.conv2)  # before which hooks are welcome: seamless tiling pads with them
        watched = any(conv._forward_hooks or "forward" in vars(conv) for conv in convolutions)
        if watched or extension.operators_compute():
            return super().forward(x, emb)
        if emb is None and x.numel() >= LARGE:  # a U-Net's come too often
            trim()
        shift = None
        if self.time_emb_proj is not None and emb is not None:
            shift = self.time_emb_proj(silu(emb))[:, :, None, None]
        h = self.conv1(self.norm1(x), add=shift)
        return self.conv2(self.norm2(h), add=x if self.conv_shortcut is None else self.conv_shortcut(x))


class FastImageAttention(layers.ImageAttention):
    """Make query, key and value in one product, and take the input along with the last."""

    to_q: PackedLinear
    to_k: PackedLinear
    to_v: PackedLinear

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if computes_plainly(self.to_q, self.to_k, self.to_v, self.to_out, *self.to_out):
            return super().forward(x)
        q, k, v = project([self.to_q, self.to_k, self.to_v], layers.to_tokens(self.group_norm(x)))
        h = attend(q, k, v, heads=1)
        return layers.to_image(self.to_out[0](h, add=layers.to_tokens(x)), *x.shape[2:])


class FastAttention(layers.Attention):
    """Make query, key and value in one product; keys and values of a context once for as long as it lives."""

    to_q: PackedLinear
    to_k: PackedLinear
    to_v: PackedLinear
    attend = staticmethod(attend)
    contexts: WeakTensorKeyDictionary | None = None  # context -> (what it must still be, keys, values)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        context: Float[Tensor, "b m e"] | None = None,
        add: Float[Tensor, "b l d"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Return what the tokens gather, plus `add`."""
        if computes_plainly(self.to_q, self.to_k, self.to_v, self.to_out, *self.to_out):
            gathered = super().forward(x, context)
            return gathered if add is None else gathered + add
        if context is None:
            q, k, v = project([self.to_q, self.to_k, self.to_v], x)
        else:
            q = self.to_q(x)
            with extension.apart():
                k, v = self.keys_values(context)
        return self.to_out[0](self.attend(q, k, v, self.heads), add=add)

    def keys_values(self, context: Float[Tensor, "b m e"]) -> tuple[Tensor, ...]:
        """Return the keys and values of a context, kept until it dies, is written to, or the weights are others."""
        layers = [self.to_k, self.to_v]
        packed = all(isinstance(layer, PackedLayer) and layer.computes(context) for layer in layers)
        if context.is_inference() or not packed:
            return project(layers, context)  # nobody counts how often inference tensors are written to
        state = (pack_together(layers), version(context))
        if self.contexts is None:
            self.contexts = WeakTensorKeyDictionary()
        known = self.contexts.get(context)
        if known is None or known[0] != state:
            known = self.contexts[context] = (state, project(layers, context))
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "contexts"}


class FastGEGLU(layers.GEGLU):
    """Take the GELU along with the product that makes the gate, and the gate with the other."""

    proj: PackedLinear

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l hidden"]:
        if computes_plainly(self.proj):
            return super().forward(x)
        if isinstance(self.proj, NarrowLinear) and self.proj.multiplies(x):
            return self.gate(self.proj, x)
        if not isinstance(self.proj, PackedLinear) or not self.proj.computes(x):
            return super().forward(x)
        kept, gate = pack_together([self.proj], parts=2).parts
        biases = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        return kernels.linear(x, kept, biases[0], multiply=kernels.linear(x, gate, biases[1], gelu=True))

    @staticmethod
    def gate(proj: NarrowLinear, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l hidden"]:
        """Do so with few tokens."""
        (kept, gate), width = proj.in_panels(parts=2), proj.out_features // 2
        biases = (None, None) if proj.bias is None else proj.bias.chunk(2)
        gelu = multiply(x, gate, biases[1], width, "gelu")
        return multiply(x, kept, biases[0], width, "multiply", gelu)


class FastFeedForward(layers.FeedForward):
    """Take what is added along with the last product."""

    def forward(self, x: Float[Tensor, "b l d"], add: Float[Tensor, "b l d"] | None = None) -> Float[Tensor, "b l d"]:
        """Return the transformed tokens plus `add`."""
        if computes_plainly(self.net, *self.net):
            transformed = super().forward(x)
            return transformed if add is None else transformed + add
        hidden, _, last = self.net
        return last(hidden(x), add=add)


class FastTransformerBlock(layers.TransformerBlock):
    """Let each of the three parts add its input."""

    attn1: FastAttention
    attn2: FastAttention
    ff: FastFeedForward

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l d"]:
        if computes_plainly(self.attn1, self.attn2, self.ff):
            return super().forward(x, context)
        x = self.attn1(self.norm1(x), context if self.only_cross else None, add=x)
        x = self.attn2(self.norm2(x), context, add=x)
        return self.ff(self.norm3(x), add=x)


class FastSpatialTransformer(layers.SpatialTransformer):
    """Take the image along with the last projection; in channels-last, image and tokens are one tensor."""

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b l d"]) -> Float[Tensor, "b c h w"]:
        if computes_plainly(self.proj_in, self.proj_out):
            return super().forward(x, context)
        size, h = x.shape[2:], self.norm(x)
        h = self.proj_in(layers.to_tokens(h)) if self.linear else layers.to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear:
            return layers.to_image(self.proj_out(h, add=layers.to_tokens(x)), *size)
        return self.proj_out(layers.to_image(h, *size), add=x)


class FastClipAttention(clip.CLIPAttention):
    """Make query, key and value in one product."""

    q_proj: PackedLinear
    k_proj: PackedLinear
    v_proj: PackedLinear
    out_proj: PackedLinear

    def forward(self, x: Float[Tensor, "b l d"], add: Float[Tensor, "b l d"] | None = None) -> Float[Tensor, "b l d"]:
        """Return the mixed tokens plus `add`."""
        if computes_plainly(self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            mixed = super().forward(x)
            return mixed if add is None else mixed + add
        made = project([self.q_proj, self.k_proj, self.v_proj], x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in made)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2), add=add)


class FastClipLayer(clip.Layer):
    """Let attention and the MLP add their input."""

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        if computes_plainly(self.self_attn, self.mlp, self.mlp.fc1, self.mlp.fc2):
            return super().forward(x)
        x = self.self_attn(self.layer_norm1(x), add=x)
        mlp = self.mlp
        return mlp.fc2(mlp.activation(mlp.fc1(self.layer_norm2(x))), add=x)


class FastTinyBlock(TinyBlock):
    """Take the ReLUs along with the convolutions, and the input with the third."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if computes_plainly(self.conv, *self.conv):
            return super().forward(x)
        first, _, second, _, third = self.conv
        return third(second(first(x, relu=True), relu=True), add=x, relu=True)


class FastTinyEncoder(TinyEncoder):
    """Make one convolution of the layers before the first block, where the image is halved without any activation."""

    composed: tuple[Any, Composed] | None = None  # as of which weights

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        head, blocks = split_encoder(self)
        if computes_plainly(*head) or len(head) < 2 or min(x.shape[2:]) < 3 * scale_of(head):
            return super().forward(x)
        cells = F.pixel_unshuffle(x, scale_of(head))
        self.composed = _renew(self.composed, head, lambda: compose_head(head, cells.shape[1]))
        return blocks(convolve(cells, self.composed[1]))


class FastTinyDecoder(TinyDecoder):
    """Make one convolution of the layers after the last block, where the image is doubled without any activation.

    Before it, what convolves a doubled image reads the small one.
    """

    composed: tuple[Any, Composed] | None = None  # as of which weights

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        blocks, tail = split_decoder(self)
        x = _pass(blocks, z)
        if computes_plainly(*tail) or len(tail) == 1 or min(x.shape[2:]) < 3:
            return tail(x)
        self.composed = _renew(self.composed, tail, lambda: compose_tail(tail, x.shape[1]))
        return F.pixel_shuffle(convolve(x, self.composed[1]), scale_of(tail))


def _pass(layers: nn.Sequential, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
    """Pass an image through layers one after the other, a doubling and the convolution after it as one."""
    left = iter(layers)
    for layer in left:
        if not isinstance(layer, nn.Upsample):
            x = layer(x)
        elif isinstance(conv := next(left), PackedConv2d) and not is_hooked(layer, conv) and conv.doubles(x):
            x = winograd.conv2d(x.contiguous(memory_format=LAST), conv.weight, conv.bias, doubled=True)
        else:
            x = conv(layer(x))
    return x


Composed = tuple[Float[Tensor, "3 3 out in 3 3"], Float[Tensor, "out 3 3"]]
"""Kernels and biases of a convolution that has others at the image's edges: by row and column, first, inner, last."""


def split_encoder(encoder: TinyEncoder) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers before the first block, and the others."""
    first = next((n for n, layer in enumerate(encoder.layers) if isinstance(layer, TinyBlock)), 0)
    return _cut(encoder.layers, first)


def split_decoder(decoder: TinyDecoder) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers up to the last block, and those after it."""
    last = max((n for n, layer in enumerate(decoder.layers) if isinstance(layer, TinyBlock)), default=1)
    return _cut(decoder.layers, last + 1)


def _cut(layers: nn.Sequential, at: int) -> tuple[nn.Sequential, nn.Sequential]:
    return nn.Sequential(*list(layers)[:at]), nn.Sequential(*list(layers)[at:])


def scale_of(layers: nn.Sequential) -> int:
    """Return how many pixels of one side of a run of layers are one of the other, in height and in width."""
    halvings = sum(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in layers)
    return 2 ** (halvings + sum(isinstance(layer, nn.Upsample) for layer in layers))


def compose_head(head: nn.Sequential, channels: int) -> Composed:
    """Compose convolutions that halve into one, of the image's pixels taken together."""
    return _compose(lambda x: head(F.pixel_shuffle(x, scale_of(head))), _blank(head, channels))


def compose_tail(tail: nn.Sequential, channels: int) -> Composed:
    """Compose doublings and convolutions into one, which makes all pixels of a place at once."""
    return _compose(lambda x: F.pixel_unshuffle(tail(x), scale_of(tail)), _blank(tail, channels))


def _blank(run: nn.Sequential, channels: int) -> Float[Tensor, "1 in 3 3"]:
    return next(run.parameters()).new_zeros(1, channels, 3, 3)


def _renew(
    composed: tuple[Any, Composed] | None, run: nn.Sequential, compose: Callable[[], Composed]
) -> tuple[Any, Composed]:
    """Return what was composed, with the weights that it is of: anew where they are others or were written to."""
    if composed is not None and _same(composed[0], _plain(run)):
        return composed
    made = compose()
    return _plain(run), made  # plain again: composing may have packed them


def _plain(run: nn.Sequential) -> list[tuple[Tensor, int]]:
    """Return the plain weights and biases of convolutions, each as of when."""
    convolutions: list[Any] = [layer for layer in run if isinstance(layer, nn.Conv2d)]
    held = [tensor for conv in convolutions for tensor in (conv.weight, conv.bias) if tensor is not None]
    return [(tensor, version(tensor)) for tensor in held]


def _same(some: list[tuple[Tensor, int]], others: list[tuple[Tensor, int]]) -> bool:
    return all(a is b and then == now for (a, then), (b, now) in zip(some, others, strict=True))


def _compose(run: Callable[[Tensor], Tensor], nothing: Float[Tensor, "1 in 3 3"]) -> Composed:
    """Compose layers without activations in between, by what each pixel of an image of 3x3 alone makes of each.

    They reach one pixel far. Near the edge, where layers in between are padded by zeros too, other kernels come out.
    """
    biases, impulses = run(nothing), torch.eye(nothing.numel(), dtype=nothing.dtype, device=nothing.device)
    responses = run(impulses.view(-1, *nothing.shape[1:])) - biases
    return responses.unflatten(0, nothing.shape[1:]).permute(4, 5, 3, 0, 1, 2), biases[0]


def convolve(x: Float[Tensor, "b c h w"], composed: Composed) -> Float[Tensor, "b out h w"]:
    """Convolve an image of at least 3x3 pixels by the kernels of their places."""
    kernels, biases = composed
    rows = [
        [
            F.conv2d(x[:, :, rows, columns], kernels[i, j, :, :, above, left], biases[:, i, j])
            for j, (columns, left) in enumerate(_places(x.shape[3]))
        ]
        for i, (rows, above) in enumerate(_places(x.shape[2]))
    ]
    return torch.cat([torch.cat(row, dim=3) for row in rows], dim=2)


def _places(side: int) -> tuple[tuple[slice, slice], ...]:
    """Return what the first, the inner and the last pixels of a side see of the image, and with what of a kernel."""
    return (
        (slice(0, 2), slice(0, 2)),
        (slice(0, side), slice(0, 3)),
        (slice(side - 2, side), slice(1, 3)),
    )


class FastUpBlock(UpBlock):
    """Join small images by the kernel in C."""

    @staticmethod
    def join(x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b d h w"]) -> Float[Tensor, "b joined h w"]:
        pixels, channels, others = len(x) * math.prod(x.shape[2:]), x.shape[1], skip.shape[1]
        if pixels > FEW or (len(x), x.shape[2:]) != (len(skip), skip.shape[2:]):
            return UpBlock.join(x, skip)
        if not all(image.is_contiguous(memory_format=LAST) for image in (x, skip)) or not extension.takes(x, skip):
            return UpBlock.join(x, skip)
        joined = torch.empty((len(x), channels + others, *x.shape[2:]), memory_format=LAST, **extension.FLOATS)
        extension.call("join", x, skip, joined, pixels, channels, others)
        return joined


# By the plain class: the fast one, and which of its parts have to be fast themselves.
BLOCKS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    nn.LayerNorm: (FastLayerNorm, ()),
    nn.GroupNorm: (FastGroupNorm, ()),
    GroupNormSiLU: (FastGroupNormSiLU, ()),
    ResidualBlock: (FastResidualBlock, ("conv1", "conv2")),
    Upsample: (FastUpsample, ("conv",)),
    layers.ImageAttention: (FastImageAttention, ("to_q", "to_k", "to_v", "to_out.0")),
    layers.Attention: (FastAttention, ("to_q", "to_k", "to_v", "to_out.0")),
    layers.GEGLU: (FastGEGLU, ("proj",)),
    layers.FeedForward: (FastFeedForward, ("net.2",)),
    layers.TransformerBlock: (FastTransformerBlock, ("attn1", "attn2", "ff")),
    layers.SpatialTransformer: (FastSpatialTransformer, ("proj_out",)),
    clip.CLIPAttention: (FastClipAttention, ("q_proj", "k_proj", "v_proj", "out_proj")),
    clip.Layer: (FastClipLayer, ("self_attn", "mlp.fc2")),
    TinyBlock: (FastTinyBlock, ("conv.0", "conv.2", "conv.4")),
    TinyEncoder: (FastTinyEncoder, ()),
    TinyDecoder: (FastTinyDecoder, ()),
    UpBlock: (FastUpBlock, ()),
    UNet: (FastUNet, ()),
}
