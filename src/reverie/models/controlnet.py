"""ControlNet: a copy of the U-Net's encoder that adds the features of edges, depth or a pose to the U-Net.

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543. The
parameters are named as in diffusers' `ControlNetModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.unet import UNETS, DownPath, UNetConfig


@dataclass(frozen=True)
class ControlNetConfig:
    """Describe a ControlNet: the U-Net that it is half of, and the widths that a hint passes on its way to latents."""

    unet: UNetConfig
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)

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
    ) -> list[Tensor]:
        """Return the `residuals` of `UNet.forward`, which takes the same arguments but for `hint`, of `embed_hint`."""
        self._check(x, context)
        emb = self._embed(t, pooled, sizes)
        skips, middle = self.descend(self.conv_in(x) + hint, emb, context)
        added = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return [*added, self.controlnet_mid_block(middle)]


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    """Start a convolution at zero, so that a new ControlNet changes nothing (2302.05543, section 3.1)."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
