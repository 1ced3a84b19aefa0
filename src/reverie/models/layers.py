"""Layers of the autoencoder and the U-Net: residual block, resampling, timestep embedding, attention, transformer.

`runtime/blocks.py` computes residual and attention blocks in fewer passes, and `codecs/image.py` the autoencoder's in
strips of rows: three forwards of the same blocks. Change one, and the other two have to follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn


class GroupNormSiLU(nn.GroupNorm):
    """Normalise groups of channels (Wu and He 1803.08494), and take the SiLU of the result."""

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        return F.silu(super().forward(x), inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Add two normalised 3x3 convolutions to the input, shifted in between by an embedding where there is one.

    `emb_dim` is the width of that embedding; None builds the block of the autoencoder, which has none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, eps: float, emb_dim: int | None = None):
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, out_channels) if emb_dim is not None else None
        self.norm2 = GroupNormSiLU(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        h = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None and emb is not None:
            h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.norm2(h))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Downsample(nn.Module):
    """Halve the height and width with a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x)


class AsymmetricDownsample(nn.Module):
    """Halve the height and width, padding on the right and at the bottom only, as the CompVis encoder does."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Enlarge to `size` (height, width), twice the input's where it is None, by repeating pixels; then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest"))


def timestep_embedding(t: Num[Tensor, " b"], dim: int) -> Float[Tensor, "b {dim}"]:
    """Embed numbers as [cos, sin] of geometric frequencies from 1 down to 1/10000, in float32.

    Source: "Attention Is All You Need", section 3.5, in the order of CompVis' `timestep_embedding`. `dim` is even.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000) / half))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def guidance_embedding(scale: Float[Tensor, " b"], dim: int) -> Float[Tensor, "b {dim}"]:
    """Embed guidance scales as [sin, cos] of 1000 times the scale, at frequencies from 1 down to 1/10000, in float32.

    Source: Luo et al. 2310.04378 (latent consistency models), section 4.2 and their code. `dim` is even.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=scale.device) * (-math.log(1e4) / (half - 1))
    )
    angles = 1000 * scale[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Map a sinusoidal embedding to the width of the residual blocks with a two-layer perceptron.

    `guidance_dim` is the width of a second embedding that is added after a projection: a distilled model's guidance.
    """

    act: Callable[[Tensor], Tensor] = staticmethod(F.silu)

    def __init__(self, in_dim: int, dim: int, guidance_dim: int | None = None):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self.cond_proj = None if guidance_dim is None else nn.Linear(guidance_dim, in_dim, bias=False)

    def forward(
        self, x: Float[Tensor, "b in_dim"], guidance: Float[Tensor, "b g"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Embed `x`, which is cast to the weights' type (the sinusoids are float32, the weights may be half)."""
        x = x.to(self.linear_1.bias.dtype)
        if self.cond_proj is not None and guidance is not None:
            x = x + self.cond_proj(guidance.to(x.dtype))
        return self.linear_2(self.act(self.linear_1(x)))


Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(queries "b l d", keys "b m d", values "b m d", heads) -> what is gathered "b l d"."""


def attend(
    q: Float[Tensor, "b l d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"], heads: int
) -> Float[Tensor, "b l d"]:
    """Attend with `heads` heads of width d / heads: softmax(q k^T / sqrt(d / heads)) v."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b hw c"]:
    """View an image as one token a pixel, row by row, without copying."""
    return x.flatten(2).transpose(1, 2)


def to_image(x: Float[Tensor, "b hw c"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """View tokens as an image again; the inverse of `to_tokens`."""
    return x.transpose(1, 2).unflatten(2, (height, width))


class ImageAttention(nn.Module):
    """Add single-head self-attention over an image's pixels to the image: the autoencoder's."""

    def __init__(self, channels: int, *, groups: int, eps: float):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = to_tokens(self.group_norm(x))
        h = self.to_out(attend(self.to_q(h), self.to_k(h), self.to_v(h), heads=1))
        return x + to_image(h, *x.shape[2:])


class Attention(nn.Module):
    """Attend from tokens to a context of width `context_dim`, or to themselves where none is given.

    `attend` may be another for a while (`runtime.changes.attending`): it says what queries gather.
    """

    attend: Attend = staticmethod(attend)

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(
        self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"] | None = None
    ) -> Float[Tensor, "b l d"]:
        context = x if context is None else context
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class GEGLU(nn.Module):
    """Project to two halves and gate the first by the GELU of the second (Shazeer 2020, "GLU Variants")."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden_dim)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l hidden"]:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    """Transform every token on its own through a gated hidden layer four times as wide."""

    def __init__(self, dim: int):
        super().__init__()
        # The Identity keeps the place of the reference's dropout, so that the last layer is net.2.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Add self-attention, attention to the context and a feed-forward layer, each after a LayerNorm.

    `only_cross` attends to the context in place of the tokens themselves, too.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, *, only_cross: bool = False):
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, context_dim if only_cross else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l d"]:
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Add `depth` transformer blocks over an image's pixels to the image.

    `linear` projects in and out with linear layers (SD 2, XL) instead of 1x1 convolutions (SD 1): the same mathematics,
    but the weights of the checkpoints have different shapes.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int,
        context_dim: int,
        groups: int,
        linear: bool,
        only_cross: bool = False,
    ):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, only_cross=only_cross) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b l d"]) -> Float[Tensor, "b c h w"]:
        size = x.shape[2:]
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        h = to_image(self.proj_out(h), *size) if self.linear else self.proj_out(to_image(h, *size))
        return x + h
