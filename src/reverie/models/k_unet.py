"""The U-Net of SD 2's latent upscaler, which doubles latents: that of k-diffusion, conditioned by adaptive GroupNorms.

Source: K. Crowson, k-diffusion (k_diffusion/models/image_v1.py), after Karras et al. 2206.00364, "EDM". The parameters
are named as in diffusers' `UNet2DConditionModel` with the blocks whose names begin with K.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.layers import Attention, TimestepEmbedding, to_image, to_tokens
from reverie.models.unet import EPS, UNet, UNetConfig

GROUP = 32  # channels that are normalised together
BLUR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)  # along each side, before every other pixel is left out


@dataclass(frozen=True)
class KUNetConfig(UNetConfig):
    """Describe a U-Net of k-diffusion; the defaults are those of stabilityai/sd-x2-latent-upscaler.

    It takes noisy latents and those that it enlarges, and gives a channel more than latents have: a variance, which
    nobody asks for. `condition_dim` is the width of the pooled prompt, and of what says how noisy the latents are that
    it enlarges. Levels of `transformer_depth` 1 attend to the prompt, the lowest to themselves before.
    """

    in_channels: int = 8
    out_channels: int = 5
    sample_size: int = 128
    block_out_channels: tuple[int, ...] = (384, 384, 768, 768)
    layers_per_block: int = 4
    transformer_depth: tuple[int, ...] = (0, 1, 1, 1)
    mid_transformer_depth: int | None = None
    num_heads: tuple[int, ...] = (6, 6, 12, 12)
    condition_dim: int = 896

    @property
    def embedding_dim(self) -> int:
        """Return the width at which noise level and condition are embedded."""
        return 2 * self.block_out_channels[0]


class AdaptiveGroupNorm(nn.Module):
    """Normalise groups of channels, then scale and shift them by an embedding."""

    def __init__(self, emb_dim: int, channels: int):
        super().__init__()
        self.groups = max(1, channels // GROUP)
        self.linear = nn.Linear(emb_dim, 2 * channels)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, dim=1)
        return F.group_norm(x, self.groups, eps=EPS) * (1 + scale) + shift


class NoiseEmbedding(TimestepEmbedding):
    """Map a noise level's sines, with a projected condition, to the width of the residual blocks; GELU throughout."""

    act: Callable[[Tensor], Tensor] = staticmethod(F.gelu)

    def forward(
        self, x: Float[Tensor, "b in_dim"], guidance: Float[Tensor, "b g"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Embed `x`, which is cast to the weights' type; `guidance` is the condition."""
        return F.gelu(super().forward(x, guidance))


class KResidualBlock(nn.Module):
    """Add two convolutions to the input, each after an adaptive GroupNorm and GELU."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, emb_dim: int):
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(emb_dim, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = AdaptiveGroupNorm(emb_dim, channels)
        self.conv2 = nn.Conv2d(channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b out h w"]:
        h = self.conv1(F.gelu(self.norm1(x, emb)))
        h = self.conv2(F.gelu(self.norm2(h, emb)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class KAttention(Attention):
    """Attend as `Attention` does, with biases, and to a context that is normalised first."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__(dim, heads, context_dim)
        self.to_q, (self.to_k, self.to_v) = nn.Linear(dim, dim), (nn.Linear(context_dim or dim, dim) for _ in range(2))
        self.norm_cross = None if context_dim is None else nn.LayerNorm(context_dim)

    def forward(
        self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"] | None = None
    ) -> Float[Tensor, "b l d"]:
        return super().forward(x, context if self.norm_cross is None or context is None else self.norm_cross(context))


class KTransformer(nn.Module):
    """Add attention to the prompt to an image, after attention to itself where it is `inward`."""

    def __init__(self, channels: int, heads: int, context_dim: int, emb_dim: int, *, inward: bool):
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(emb_dim, channels) if inward else None
        self.attn1 = KAttention(channels, heads) if inward else None
        self.norm2 = AdaptiveGroupNorm(emb_dim, channels)
        self.attn2 = KAttention(channels, heads, context_dim)

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], context: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c h w"]:
        size = x.shape[2:]
        if self.norm1 is not None and self.attn1 is not None:
            x = x + to_image(self.attn1(to_tokens(self.norm1(x, emb))), *size)
        return x + to_image(self.attn2(to_tokens(self.norm2(x, emb)), context), *size)


class KBlock(nn.Module):
    """Hold residual blocks from `before` channels to a level's, the last to `after`, and a transformer after each."""

    def __init__(self, before: int, after: int, level: int, config: KUNetConfig):
        super().__init__()
        width, layers, emb_dim = config.block_out_channels[level], config.layers_per_block, config.embedding_dim
        inputs, outputs = [before] + [width] * (layers - 1), [width] * (layers - 1) + [after]
        self.resnets = nn.ModuleList(
            KResidualBlock(first, width, last, emb_dim) for first, last in zip(inputs, outputs, strict=True)
        )
        context, inward = config.cross_attention_dim, level == len(config.block_out_channels) - 1
        head_dim = width // config.num_heads[level]
        self.attentions = nn.ModuleList(
            KTransformer(channels, channels // head_dim, context, emb_dim, inward=inward)
            for channels in outputs
            if config.transformer_depth[level]
        )

    def layers(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], context: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b out h w"]:
        """Apply all residual blocks, and the transformer after each."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            x = self.attentions[index](x, emb, context) if self.attentions else x
        return x


def _blur(channels: int, like: Tensor) -> Float[Tensor, "c 1 4 4"]:
    line = like.new_tensor(BLUR)
    return (line[:, None] * line).expand(channels, 1, -1, -1)


def _pad(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return F.pad(x, (1,) * 4, mode="reflect" if min(x.shape[2:]) > 1 else "replicate")


class KDownBlock(KBlock):
    """Apply one level on the way down and halve the image, which is blurred, unless the level is the last."""

    def __init__(self, level: int, config: KUNetConfig):
        widths = config.block_out_channels
        super().__init__(widths[max(0, level - 1)], widths[level], level, config)
        self.last = level == len(widths) - 1

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], context: Float[Tensor, "b l d"]
    ) -> list[Tensor]:
        """Return the level's output, and that halved; the last is the block's."""
        x = self.layers(x, emb, context)
        channels = x.shape[1]
        return [x] if self.last else [x, F.conv2d(_pad(x), _blur(channels, x), stride=2, groups=channels)]


class KUpBlock(KBlock):
    """Apply one level on the way up, joining the way down's output, and enlarge unless the level is the first."""

    def __init__(self, level: int, config: KUNetConfig):
        widths = config.block_out_channels
        self.last, self.first = level == len(widths) - 1, level == 0
        super().__init__(widths[level] * (1 if self.last else 2), widths[max(0, level - 1)], level, config)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
    ) -> Float[Tensor, "b out h2 w2"]:
        """Take this level's outputs off the end of `skips`; the lowest one's is what it is given."""
        skips.pop()  # of the level below, halved, or x itself
        x = self.layers(x if self.last else torch.cat([x, skips.pop()], dim=1), emb, context)
        if self.first:
            return x
        channels = x.shape[1]
        return F.conv_transpose2d(_pad(x), 4 * _blur(channels, x), stride=2, padding=3, groups=channels)


class KUNet(UNet):
    """Predict clean latents, preconditioned as EDM's, of noisy ones and of those that are to be enlarged."""

    config: KUNetConfig

    def __init__(self, config: KUNetConfig):
        nn.Module.__init__(self)
        self.config, widths, width = config, config.block_out_channels, config.embedding_dim
        self.time_proj = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(widths[0]), requires_grad=False)})
        self.time_embedding = NoiseEmbedding(width, width, config.condition_dim)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 1)
        self.down_blocks = nn.ModuleList(KDownBlock(level, config) for level in range(len(widths)))
        self.mid_block = None
        self.up_blocks = nn.ModuleList(KUpBlock(level, config) for level in reversed(range(len(widths))))
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], *given: Any, **named: Any) -> Float[Tensor, "b out h w"]:
        """Denoise latents of any height and width, given the rest of what `UNet.forward` takes.

        `t` is log(sigma) / 4, `pooled` the pooled prompt. Raises `ReverieError` where a width is not the config's.
        """
        height, width = x.shape[2:]
        whole = 2 ** (len(self.config.block_out_channels) - 1)
        filled = F.pad(x, (0, -width % whole, 0, -height % whole), mode="replicate")
        return super().forward(filled, *given, **named)[:, :-1, :height, :width]

    def finish(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        """Make the prediction of what the last level gives, and its variance."""
        return self.conv_out(x)

    def _embed(
        self, t: Tensor, pooled: Tensor | None, sizes: Tensor | None, guidance: Tensor | None = None
    ) -> Float[Tensor, "b e"]:
        """Embed the noise level at random frequencies, with the prompt, and that what is enlarged is not noisy."""
        level = self.config.condition_dim - self.config.cross_attention_dim
        if pooled is None or pooled.shape[1] + level != self.config.condition_dim:
            raise ReverieError(
                f"this U-Net also takes the pooled prompt, {self.config.cross_attention_dim} wide; give it as `pooled`"
            )
        angles = 2 * math.pi * t[:, None].float() * self.time_proj["weight"].float()
        clean = torch.cat([pooled.new_ones(len(pooled), level // 2), pooled.new_zeros(len(pooled), level // 2)], dim=1)
        return self.time_embedding(torch.cat([angles.cos(), angles.sin()], dim=1), torch.cat([clean, pooled], dim=1))
