"""How do pixels look at one another and at the prompt? Attention, transformer block, spatial transformer."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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
    """Attend from tokens to a context of width `context_dim`, or to themselves where none is given."""

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
        return self.to_out(attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


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
    """Add self-attention, attention to the context and a feed-forward layer, each after a LayerNorm."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l d"]:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Add `depth` transformer blocks over an image's pixels to the image.

    `linear` projects in and out with linear layers (SD 2, XL) instead of 1x1 convolutions (SD 1): the same mathematics,
    but the weights of the checkpoints have different shapes.
    """

    def __init__(self, channels: int, *, heads: int, depth: int, context_dim: int, groups: int, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, context_dim) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b l d"]) -> Float[Tensor, "b c h w"]:
        size = x.shape[2:]
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        h = to_image(self.proj_out(h), *size) if self.linear else self.proj_out(to_image(h, *size))
        return x + h
