"""Which layers do the autoencoder and the U-Net share? Residual block, resampling, timestep embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Add two normalised 3x3 convolutions to the input, shifted in between by an embedding where there is one.

    `emb_dim` is the width of that embedding; None builds the block of the autoencoder, which has none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, eps: float, emb_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, out_channels) if emb_dim is not None else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None and emb is not None:
            h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
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
        return self.linear_2(F.silu(self.linear_1(x)))
