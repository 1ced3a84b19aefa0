"""Networks by which a picture guides a U-Net: ControlNet, ControlNet-LLLite, and T2I-Adapter.

ControlNet is a copy of the U-Net's encoder that adds the features of edges, depth or a pose to the U-Net. Source:
Zhang et al. 2302.05543. A union ControlNet (xinsir's for SDXL) is one for several kinds of pictures, and is told which.
The parameters are named as in diffusers' `ControlNetModel` and `ControlNetUnionModel`.

ControlNet-LLLite is kohya's small form, which changes what single layers are given.

T2I-Adapter is a small network whose features of a picture, computed once for all steps, are added to those of a U-Net's
way down. Source: Mou et al. 2302.08453 and its code (TencentARC/T2I-Adapter). The parameters are named as in diffusers'
`T2IAdapter`, without its prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.layers import TimestepEmbedding, timestep_embedding
from reverie.models.unet import UNETS, DownPath, UNetConfig


@dataclass(frozen=True)
class ControlNetConfig:
    """Describe a ControlNet: the U-Net that it is half of, and the widths that a hint passes on its way to latents.

    One that is `pooled` (shuffle) answers with the mean of each channel, for the prompted half of guidance alone. A
    union knows `kinds` kinds of pictures; other ControlNets are of one kind and know none.
    """

    unet: UNetConfig
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    pooled: bool = False
    kinds: int = 0
    fusing_heads: int = 8
    fusing_layers: int = 1

    @property
    def factor(self) -> int:
        """Return how many of a hint's pixels become one latent, in height and in width."""
        return 2 ** (len(self.hint_widths) - 1)


CONTROLNETS = {name: ControlNetConfig(UNETS[name]) for name in ("sd15", "sd21", "sdxl")}


class HintEmbedding(nn.Module):
    """Shrink a hint to the size of the latents, at the width of the U-Net's first level."""

    def __init__(self, channels: int, widths: Sequence[int], out_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, following in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, following, 3, padding=1, stride=2))
        self.conv_out = _silent(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, hint: Float[Tensor, "b c hf wf"]) -> Float[Tensor, "b out h w"]:
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class QuickGELU(nn.Module):
    """Approximate the GELU by x sigmoid(1.702 x) (Hendrycks and Gimpel 1606.08415)."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return x * torch.sigmoid(1.702 * x)


class FusingBlock(nn.Module):
    """Let the means of hint and latents attend to each other, as CLIP's layers do.

    As in ComfyUI (comfy/cldm/cldm.py). In xinsir's code and diffusers it is the pictures of a batch that attend to each
    other, and so would change with it.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        parts = {"c_fc": nn.Linear(dim, 4 * dim), "gelu": QuickGELU(), "c_proj": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ControlNet(DownPath):
    """Answer a hint with what is to be added to the outputs of the U-Net's way down and of its middle."""

    def __init__(self, config: ControlNetConfig):
        super().__init__(config.unet)
        self.control = config
        widths, layers = config.unet.block_out_channels, config.unet.layers_per_block
        self.controlnet_cond_embedding = HintEmbedding(config.hint_channels, config.hint_widths, widths[0])
        # One for conv_in, then for every layer of a level and, in all but the last, for its downsampler.
        outputs = [widths[0], *(width for width in widths for _ in range(layers + 1))][:-1]
        self.controlnet_down_blocks = nn.ModuleList(_silent(nn.Conv2d(width, width, 1)) for width in outputs)
        self.controlnet_mid_block = _silent(nn.Conv2d(widths[-1], widths[-1], 1))
        if config.kinds:
            width, size_width = widths[0], config.unet.addition_time_embed_dim or widths[0]
            self.task_embedding = nn.Parameter(torch.randn(config.kinds, width) * width**-0.5)
            blocks = (FusingBlock(width, config.fusing_heads) for _ in range(config.fusing_layers))
            self.transformer_layes = nn.ModuleList(blocks)  # spelled so in every file
            self.spatial_ch_projs = nn.Linear(width, width)
            nn.init.zeros_(self.spatial_ch_projs.weight)
            nn.init.zeros_(self.spatial_ch_projs.bias)
            self.control_add_embedding = TimestepEmbedding(size_width * config.kinds, 4 * width)

    def embed_hint(self, hint: Float[Tensor, "b c hf wf"]) -> Float[Tensor, "b d h w"]:
        """Embed hints in [0, 1] once for all steps. Raises `ReverieError` for sides that are not whole latents."""
        height, width = hint.shape[2:]
        if height % self.control.factor or width % self.control.factor:
            raise ReverieError(f"a hint of {width} x {height} pixels has no whole latents; give multiples of 8")
        return self.controlnet_cond_embedding(hint)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Num[Tensor, " b"],
        context: Float[Tensor, "b l d"],
        hint: Float[Tensor, "b e h w"],
        pooled: Float[Tensor, "b p"] | None = None,
        sizes: Num[Tensor, "b s"] | None = None,
        kind: int | None = None,
    ) -> list[Tensor]:
        """Return the `residuals` of `UNet.forward`, which takes the same arguments but for `hint`, of `embed_hint`.

        A union takes the `kind` of picture that the hint is of, too.
        """
        self._check(x, context)
        emb, h = self._embed(t, pooled, sizes), self.conv_in(x)
        if self.control.kinds:
            emb, hint = emb + self._kind_embedding(kind), hint + self._shift(h, hint, kind)
        skips, middle = self.descend(h + hint, emb, context)
        added = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        added.append(self.controlnet_mid_block(middle))
        if self.control.pooled:
            return [residual.mean((2, 3), keepdim=True).expand_as(residual) for residual in added]
        return added

    def _kind_embedding(self, kind: int | None) -> Float[Tensor, "1 e"]:
        """Embed which kinds of pictures are given, as a row of noughts and a one."""
        if kind is None or not 0 <= kind < self.control.kinds:
            raise ReverieError(f"this union ControlNet knows {self.control.kinds} kinds of pictures; kind is {kind}")
        given = F.one_hot(torch.tensor(kind), self.control.kinds).to(self.task_embedding.device)
        width = self.control.unet.addition_time_embed_dim or self.control.unet.block_out_channels[0]
        return self.control_add_embedding(timestep_embedding(given, width).reshape(1, -1))

    def _shift(self, h: Tensor, hint: Tensor, kind: int | None) -> Float[Tensor, "b d 1 1"]:
        """Return what is added to each channel of a hint, told from the means of hint and latents."""
        means = torch.stack([hint.mean((2, 3)) + self.task_embedding[kind], h.mean((2, 3))], dim=1)
        for layer in self.transformer_layes:
            means = layer(means)
        return self.spatial_ch_projs(means[:, 0])[..., None, None]


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    """Start a convolution at zero, so that a new ControlNet changes nothing (2302.05543, section 3.1)."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class LLLite(nn.Module):
    """Change what one linear layer of a U-Net is given, by a picture: a part of a ControlNet-LLLite.

    `depth` is 1 to 3: the picture is embedded at an 8th, a 16th or a 32nd of its size, that of the layer's image. What
    `down` leaves of the layer's input is joined to it. Source: kohya-ss/sd-scripts, networks/control_net_lllite.py and
    docs/train_lllite_README.md, whose names the parameters have.
    """

    def __init__(self, dim: int, hidden: int, embedding: int, depth: int):
        super().__init__()
        self.dim, half = dim, embedding // 2
        strides = {1: (4, 2), 2: (4, 4), 3: (4, 4, 2)}[depth]
        widths = (3, *[half] * (len(strides) - 1), embedding)
        layers: list[nn.Module] = []
        for (width, following), stride in zip(pairwise(widths), strides, strict=True):
            layers += [nn.ReLU(), nn.Conv2d(width, following, stride, stride)]
        self.conditioning1 = nn.Sequential(*layers[1:])
        self.down = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(hidden + embedding, hidden), nn.ReLU())
        self.up = nn.Sequential(nn.Linear(hidden, dim))

    def forward(self, x: Float[Tensor, "b l d"], seen: Float[Tensor, "1 l e"]) -> Float[Tensor, "b l d"]:
        """Return what is added to the layer's input, where `seen` is the picture embedded by `conditioning1`."""
        return self.up(self.mid(torch.cat([seen.expand(len(x), -1, -1), self.down(x)], dim=2)))


FACTOR_XL = 16  # pixels that SDXL's take for one at first; theirs halve once more, the others at each level


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Describe a T2I-Adapter: `factor` pixels of a side become one, and each level has `layers` residual blocks.

    A light one (`light`) computes at a quarter of each level's width.
    """

    in_channels: int = 3
    factor: int = 8
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    light: bool = False

    def halves(self, level: int) -> bool:
        """Tell whether a level begins by halving the image."""
        return level == 2 if self.factor == FACTOR_XL else level > 0


class AdapterLayer(nn.Module):
    """Add two convolutions with a ReLU between them to the input."""

    def __init__(self, width: int, last: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, last, padding=last // 2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.block2(F.relu(self.block1(x)))


class AdapterLevel(nn.Module):
    """Halve the image or not, bring it to a width, and apply residual blocks; a light one widens it after them."""

    def __init__(self, before: int, width: int, layers: int, *, halve: bool, light: bool) -> None:
        super().__init__()
        inner = width // 4 if light else width
        self.halve = halve
        self.in_conv = nn.Conv2d(before, inner, 1) if light or before != inner else None
        self.resnets = nn.Sequential(*(AdapterLayer(inner, 3 if light else 1) for _ in range(layers)))
        self.out_conv = nn.Conv2d(inner, width, 1) if light else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        if self.halve:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = self.resnets(x if self.in_conv is None else self.in_conv(x))
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(nn.Module):
    """Answer a picture with what is to be added to a U-Net's way down, a level each."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        seen = config.in_channels * config.factor**2
        self.conv_in = None if config.light else nn.Conv2d(seen, config.widths[0], 3, padding=1)
        befores = pairwise((seen if config.light else config.widths[0], *config.widths))
        self.body = nn.ModuleList(
            AdapterLevel(before, width, config.layers, halve=config.halves(level), light=config.light)
            for level, (before, width) in enumerate(befores)
        )

    def forward(self, picture: Float[Tensor, "b c hf wf"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Return the features of pictures in [0, 1], whose sides are multiples of `factor`."""
        x = F.pixel_unshuffle(picture, self.config.factor)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for level in self.body:
            x = level(x)
            features.append(x)
        return features
