"""IP-Adapter: pictures as prompts, which a U-Net's cross-attentions see beside the text.

Source: Ye et al. 2308.06721 and its code (tencent-ailab/IP-Adapter: ip_adapter.py, resampler.py), whose names the
parameters have. What a CLIP sees of a picture is projected to tokens; each cross-attention has a second pair of keys
and values for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.clip import VisionTowerWithProjection
from reverie.models.layers import attend

HEAD_WIDTH = 64  # of the resampler's attention


class ImageProjection(nn.Module):
    """Make a few tokens of a picture's embedding: the plain IP-Adapter. No picture is an embedding of zeros."""

    instead = False

    def __init__(self, seen: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.seen = seen
        self.proj = nn.Linear(seen, tokens * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, seen: Float[Tensor, "b e"]) -> Float[Tensor, "b n d"]:
        return self.norm(self.proj(seen).unflatten(1, (-1, *self.norm.normalized_shape)))

    @staticmethod
    def see(tower: VisionTowerWithProjection, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Return what is seen of pictures made by `codecs.clip_images`."""
        return tower(pixels).pooled

    @staticmethod
    def see_nothing(tower: VisionTowerWithProjection, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Return what stands for no pictures, as many as `pixels` are."""
        return pixels.new_zeros(len(pixels), tower.visual_projection.out_features)


class SeesPatches(nn.Module):
    """See a picture's patches, as the layer before the tower's last gives them. No picture is a grey one."""

    instead = False  # of the text's tokens, beside which they are seen

    @staticmethod
    def see(tower: VisionTowerWithProjection, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p e"]:
        """Return what is seen of pictures made by `codecs.clip_images`."""
        return tower.vision_model(pixels).hidden[-2]

    @staticmethod
    def see_nothing(tower: VisionTowerWithProjection, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p e"]:
        """Return what stands for no pictures, as many as `pixels` are."""
        return SeesPatches.see(tower, torch.zeros_like(pixels))


class PatchProjection(SeesPatches):
    """Make a token of each of a picture's patches: the full IP-Adapter."""

    def __init__(self, seen: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.seen = seen
        self.proj = nn.Sequential(nn.Linear(seen, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.LayerNorm(dim))

    def forward(self, seen: Float[Tensor, "b p e"]) -> Float[Tensor, "b p d"]:
        return self.proj(seen)


class WholeProjection(SeesPatches):
    """Make tokens of all of a picture's patches at once: narrowed, laid in a row, and mixed by layers of `hidden`.

    It is our own; diffusers knows none like it. The patches are as many as the tower's, its class token among them. The
    tokens stand in the place of a caption's.
    """

    instead = True

    def __init__(self, seen: int, patches: int, tokens: int, dim: int, *, narrow: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.seen = patches * seen
        self.narrow = nn.Linear(seen, narrow)
        widths = [patches * narrow, *hidden]
        self.mix = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.out = nn.Linear(widths[-1], tokens * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, seen: Float[Tensor, "b p e"]) -> Float[Tensor, "b n d"]:
        x = self.narrow(seen).flatten(1)
        for layer in self.mix:
            x = F.gelu(layer(x))
        return self.norm(self.out(x).unflatten(1, (-1, *self.norm.normalized_shape)))


class ResamplerAttention(nn.Module):
    """Let the tokens see a picture's patches and themselves."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.heads = max(1, inner // HEAD_WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv = nn.Linear(dim, inner, bias=False), nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, patches: Float[Tensor, "b p d"], tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        tokens = self.norm2(tokens)
        k, v = self.to_kv(torch.cat([self.norm1(patches), tokens], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(tokens), k, v, self.heads))


class ResamplerLayer(nn.ModuleList):
    """Add attention and then a feed-forward layer to the tokens."""

    def __init__(self, dim: int, inner: int, hidden: int) -> None:
        linear = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        feed_forward = nn.Sequential(nn.LayerNorm(dim), linear[0], nn.GELU(), linear[1])
        super().__init__([ResamplerAttention(dim, inner), feed_forward])

    def forward(self, patches: Float[Tensor, "b p d"], tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        attention, feed_forward = self
        tokens = tokens + attention(patches, tokens)
        return tokens + feed_forward(tokens)


class Resampler(SeesPatches):
    """Make tokens of a picture's patches by learned queries: IP-Adapter Plus.

    `inner` is the width of all heads, `hidden` that of the layers between.
    """

    def __init__(self, seen: int, tokens: int, dim: int, *, width: int, inner: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.seen = seen
        self.latents = nn.Parameter(torch.randn(1, tokens, width) * width**-0.5)
        self.proj_in, self.proj_out = nn.Linear(seen, width), nn.Linear(width, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(ResamplerLayer(width, inner, hidden) for _ in range(depth))

    def forward(self, seen: Float[Tensor, "b p e"]) -> Float[Tensor, "b n d"]:
        patches, tokens = self.proj_in(seen), self.latents.expand(len(seen), -1, -1)
        for layer in self.layers:
            tokens = layer(patches, tokens)
        return self.norm_out(self.proj_out(tokens))


Projection = ImageProjection | PatchProjection | Resampler | WholeProjection


class KeysValues(nn.Module):
    """Hold the keys and values of one cross-attention, for the tokens of pictures."""

    def __init__(self, context_dim: int, dim: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_dim, dim, bias=False)
        self.to_v_ip = nn.Linear(context_dim, dim, bias=False)

    def forward(self, tokens: Float[Tensor, "b n e"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class IPAdapter(nn.Module):
    """Hold a projection, and keys and values for cross-attentions of the widths `dims`, in diffusers' order.

    That is the way down, the way up, and then the middle. They are numbered 1, 3, 5, as the self-attentions between
    them, which have none, are counted too.
    """

    def __init__(self, image_proj: Projection, context_dim: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.context_dim, self.dims = context_dim, tuple(dims)
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleDict(
            {str(2 * n + 1): KeysValues(context_dim, dim) for n, dim in enumerate(self.dims)}
        )

    def embed(
        self, tower: VisionTowerWithProjection, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Return the tokens of pictures made by `codecs.clip_images`, and those of no picture."""
        project = self.image_proj
        return project(project.see(tower, pixels)), project(project.see_nothing(tower, pixels))

    def forward(self, seen: Float[Tensor, "b ..."]) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values of what is seen of pictures, for each cross-attention."""
        return self.keys_values(self.image_proj(seen))

    def keys_values(self, tokens: Float[Tensor, "b n d"]) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values of tokens for each cross-attention."""
        return [layer(tokens) for layer in self.ip_adapter.values()]
