"""The conditional U-Net of Stable Diffusion 1, 2 and XL, and of the smaller ones distilled from them.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Podell et al. 2023, "SDXL";
with fewer blocks: Kim et al. 2305.15798, "BK-SDM"; Gupta et al. 2401.02677, "SSD-1B"; Lee et al. 2312.04005, "KOALA";
Song et al. 2403.16627, "SDXS". The parameters are named as in diffusers' `UNet2DConditionModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.layers import (
    Downsample,
    GroupNormSiLU,
    ResidualBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    guidance_embedding,
    timestep_embedding,
)

EPS = 1e-5  # of the GroupNorms outside the spatial transformers


@dataclass(frozen=True)
class UNetConfig:
    """Describe a U-Net; tuples have one entry a level, and the defaults are Stable Diffusion 1.5's.

    `transformer_depth` counts the transformer blocks after each residual block: 0 is a level without attention. On the
    way up there are as many, or each layer has its own of `up_transformer_depth`. A `mid_transformer_depth` of 0 is a
    middle of one residual block alone, None is no middle. In levels of `only_cross_attention` the image attends to the
    prompt twice, and never to itself.
    `projection_input_dim` is the width of SDXL's added embedding: the pooled text, then every size embedded at width
    `addition_time_embed_dim`; where that is None, of unCLIP's class embedding: a picture's and its noise level's. None
    is a U-Net that takes neither. `num_class_embeds` counts the noise levels of which the x4 upscaler has an embedding
    each. `time_cond_proj_dim` is the width at which a latent consistency model embeds the guidance that it was
    distilled for; None is a U-Net that is guided from outside.
    """

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    mid_transformer_depth: int | None = 1
    up_transformer_depth: tuple[tuple[int, ...], ...] | None = None
    only_cross_attention: tuple[bool, ...] | None = None
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    addition_time_embed_dim: int | None = None
    projection_input_dim: int | None = None
    num_class_embeds: int | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if len(self.transformer_depth) != levels or len(self.num_heads) != levels:
            raise ReverieError(
                f"U-Net of {levels} levels with {len(self.transformer_depth)} transformer depths and "
                f"{len(self.num_heads)} head counts; give one of each per level"
            )
        up, crossed = self.up_transformer_depth, self.only_cross_attention
        if up is not None and [len(layers) for layers in up] != [self.layers_per_block + 1] * levels:
            raise ReverieError(
                f"U-Net with transformer depths {up} on the way up; give {self.layers_per_block + 1} in each of the "
                f"{levels} levels"
            )
        if any(0 in layers and any(layers) for layers in up or ()):
            raise ReverieError(f"U-Net with transformer depths {up} on the way up; give a level 0 alone, or none")
        if crossed is not None and len(crossed) != levels:
            raise ReverieError(
                f"U-Net of {levels} levels with {len(crossed)} of only_cross_attention; give one a level"
            )

    @property
    def takes_sizes(self) -> bool:
        """Return whether sizes in pixels are embedded beside the pooled text, as SDXL does."""
        return self.addition_time_embed_dim is not None

    def up_depths(self, level: int) -> tuple[int, ...]:
        """Count the transformer blocks after each residual block of a level on the way up."""
        if self.up_transformer_depth is not None:
            return self.up_transformer_depth[level]
        return (self.transformer_depth[level],) * (self.layers_per_block + 1)


SD15 = UNetConfig()
SD21 = UNetConfig(
    sample_size=96,
    num_heads=(5, 10, 20, 20),
    cross_attention_dim=1024,
    use_linear_projection=True,
)
SDXL = UNetConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    transformer_depth=(0, 2, 10),
    mid_transformer_depth=10,
    num_heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_input_dim=2816,
)
SMALL = replace(SD15, layers_per_block=1)
SMALL2 = replace(SD21, layers_per_block=1, sample_size=64)


def _tiny(config: UNetConfig) -> UNetConfig:
    """Leave out the middle and the last level, as BK-SDM's smallest do."""
    return replace(
        config,
        block_out_channels=config.block_out_channels[:-1],
        transformer_depth=config.transformer_depth[:-1],
        num_heads=config.num_heads[:-1],
        mid_transformer_depth=None,
    )


UNETS: dict[str, UNetConfig] = {
    "sd15": SD15,
    "sd15-inpainting": replace(SD15, in_channels=9),
    "sd21": SD21,
    "sdxl": SDXL,
    "sdxl-refiner": UNetConfig(
        sample_size=128,
        block_out_channels=(384, 768, 1536, 1536),
        transformer_depth=(0, 4, 4, 0),
        mid_transformer_depth=4,
        num_heads=(6, 12, 24, 24),
        cross_attention_dim=1280,
        use_linear_projection=True,
        addition_time_embed_dim=256,
        projection_input_dim=2560,
    ),
    "x4-upscaler": UNetConfig(
        in_channels=7,
        sample_size=128,
        block_out_channels=(256, 512, 512, 1024),
        transformer_depth=(0, 1, 1, 1),
        only_cross_attention=(True, True, True, False),
        cross_attention_dim=1024,
        use_linear_projection=True,
        num_class_embeds=1000,
    ),
    "bk-sdm-base": SMALL,
    "bk-sdm-small": replace(SMALL, mid_transformer_depth=None),
    "bk-sdm-tiny": _tiny(SMALL),
    "bk-sdm-v2-base": SMALL2,
    "bk-sdm-v2-small": replace(SMALL2, mid_transformer_depth=None),
    "bk-sdm-v2-tiny": _tiny(SMALL2),
    "sdxs": replace(_tiny(SMALL), transformer_depth=(0, 1, 1)),
    "sdxs-0.9": replace(_tiny(SMALL2), only_cross_attention=(True, False, False)),
    "ssd-1b": replace(
        SDXL,
        transformer_depth=(0, 2, 4),
        mid_transformer_depth=0,
        up_transformer_depth=((0, 0, 0), (2, 1, 1), (4, 4, 10)),
    ),
    "segmind-vega": replace(SDXL, transformer_depth=(0, 1, 2), mid_transformer_depth=0),
    "koala-700m": replace(SDXL, layers_per_block=1, transformer_depth=(0, 2, 5), mid_transformer_depth=None),
    "koala-1b": replace(SDXL, layers_per_block=1, transformer_depth=(0, 2, 6), mid_transformer_depth=6),
}


class Block(nn.Module):
    """Hold residual blocks from the widths `inputs` to a level's, and transformers of the `depths` that follow them."""

    def __init__(self, inputs: Sequence[int], depths: Sequence[int], level: int, config: UNetConfig):
        super().__init__()
        channels, groups = config.block_out_channels[level], config.norm_num_groups
        emb_dim, crossed = 4 * config.block_out_channels[0], config.only_cross_attention
        self.resnets = nn.ModuleList(
            ResidualBlock(width, channels, groups=groups, eps=EPS, emb_dim=emb_dim) for width in inputs
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(
                channels,
                heads=config.num_heads[level],
                depth=depth,
                context_dim=config.cross_attention_dim,
                groups=groups,
                linear=config.use_linear_projection,
                only_cross=crossed is not None and crossed[level],
            )
            for depth in depths
            if depth
        )

    def layer(
        self, index: int, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], context: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b out h w"]:
        """Apply one residual block and the transformer after it, where there is one."""
        x = self.resnets[index](x, emb)
        return self.attentions[index](x, context) if index < len(self.attentions) else x


class DownBlock(Block):
    """Apply one level on the way down and halve the image unless the level is the last."""

    def __init__(self, inputs: Sequence[int], level: int, config: UNetConfig):
        super().__init__(inputs, [config.transformer_depth[level]] * len(inputs), level, config)
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(config.block_out_channels[level])])

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], context: Float[Tensor, "b l d"]
    ) -> list[Tensor]:
        """Return every layer's output; the last is the block's."""
        outputs = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, emb, context)
            outputs.append(x)
        return outputs + [downsample(x) for downsample in self.downsamplers]


class MidBlock(Block):
    """Apply a residual block at the lowest resolution and, where `depth` is not 0, a transformer and another one."""

    def __init__(self, depth: int, config: UNetConfig):
        width = config.block_out_channels[-1]
        super().__init__([width] * (2 if depth else 1), [depth], len(config.block_out_channels) - 1, config)

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], context: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b c h w"]:
        for index in range(len(self.resnets)):
            x = self.layer(index, x, emb, context)
        return x


class UpBlock(Block):
    """Apply one level on the way up, joining the way down's outputs, and enlarge unless the level is the first."""

    def __init__(self, inputs: Sequence[int], level: int, config: UNetConfig):
        super().__init__(inputs, config.up_depths(level), level, config)
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(config.block_out_channels[level])])

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
    ) -> Float[Tensor, "b out h2 w2"]:
        """Take this level's outputs off the end of `skips`; enlarge to the size of the one that is then the last.

        A layer for which none is left is left out.
        """
        for index in range(min(len(self.resnets), len(skips))):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), emb, context)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:])
        return x


class DownPath(nn.Module):
    """Hold what a U-Net shares with its ControlNet: the timestep's embedding, the way down and the middle."""

    class_embedding: nn.Module

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], config.time_cond_proj_dim)
        if config.projection_input_dim is not None:
            added = TimestepEmbedding(config.projection_input_dim, 4 * widths[0])
            if config.takes_sizes:
                self.add_embedding = added
            else:
                self.class_embedding = added
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * widths[0])
        inputs, _ = _input_widths(widths, config.layers_per_block)
        self.down_blocks = nn.ModuleList(DownBlock(inputs[level], level, config) for level in range(len(widths)))
        depth = config.mid_transformer_depth
        self.mid_block = None if depth is None else MidBlock(depth, config)

    def descend(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return x, which `conv_in` made, with every layer's output on the way down, and the middle's output.

        `residuals` are added to what is returned, the last to the middle's.
        """
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], emb, context)
        middle = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], emb, context)
        if residuals is not None:
            *skips, middle = (output + added for output, added in zip([*skips, middle], residuals, strict=True))
        return skips, middle

    def features(
        self, x: Float[Tensor, "b c h w"], t: Num[Tensor, " b"], context: Float[Tensor, "b l d"]
    ) -> list[Float[Tensor, "b _c _h _w"]]:
        """Return what each level on the way down gives, the last after the middle: by which latents can be judged."""
        emb, found = self._embed(t, None, None), [self.conv_in(x)]
        for block in self.down_blocks:
            found.append(block(found[-1], emb, context)[-1])
        return [*found[1:-1], found[-1] if self.mid_block is None else self.mid_block(found[-1], emb, context)]

    def _check(self, x: Tensor, context: Tensor) -> None:
        if x.shape[1] != self.config.in_channels:
            raise ReverieError(f"U-Net input has {x.shape[1]} channels; this model takes {self.config.in_channels}")
        if context.shape[2] != self.config.cross_attention_dim:
            raise ReverieError(
                f"context is {context.shape[2]} wide; this U-Net takes {self.config.cross_attention_dim}: "
                "use the text encoder it was trained with"
            )

    def _embed_time(self, t: Tensor, guidance: Tensor | None) -> Float[Tensor, "b e"]:
        """Embed the timestep, with the guidance where the model takes it."""
        embedded = timestep_embedding(t, self.config.block_out_channels[0])
        if (width := self.config.time_cond_proj_dim) is None:
            return self.time_embedding(embedded)
        if guidance is None:
            raise ReverieError("this U-Net was distilled for a guidance and takes its scale; give `guidance`")
        return self.time_embedding(embedded, guidance_embedding(guidance, width))

    def _embed(
        self, t: Tensor, pooled: Tensor | None, sizes: Tensor | None, guidance: Tensor | None = None
    ) -> Float[Tensor, "b e"]:
        """Embed the timestep, plus pooled text and sizes, the picture or its level, where the model takes them."""
        emb = self._embed_time(t, guidance)
        if self.config.num_class_embeds is not None:
            if pooled is None or pooled.shape[1] != 1:
                raise ReverieError("this U-Net also takes the noise level of a picture; give it as `pooled`, 1 wide")
            return emb + self.class_embedding(pooled[:, 0].long())
        width, size_width = self.config.projection_input_dim, self.config.addition_time_embed_dim
        if width is None:
            return emb
        if size_width is None:
            if pooled is None or pooled.shape[1] != width:
                raise ReverieError(f"this U-Net also takes a picture's embedding, {width} wide; give it as `pooled`")
            return emb + self.class_embedding(pooled)
        if pooled is None or sizes is None:
            raise ReverieError(
                "this U-Net also takes the pooled text embedding and the image sizes; give `pooled`, `sizes`"
            )
        given = pooled.shape[1] + sizes.shape[1] * size_width
        if given != width:
            raise ReverieError(
                f"pooled text of width {pooled.shape[1]} and {sizes.shape[1]} sizes make {given} numbers; "
                f"this U-Net takes {width}, {size_width} of them for each size"
            )
        embedded_sizes = timestep_embedding(sizes.flatten(), size_width).view(len(sizes), -1)
        return emb + self.add_embedding(torch.cat([pooled, embedded_sizes], dim=1))


class UNet(DownPath):
    """Predict the noise, or the velocity, in latents at a timestep, given the prompt's embedding."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        widths = config.block_out_channels
        _, inputs = _input_widths(widths, config.layers_per_block)
        self.up_blocks = nn.ModuleList(UpBlock(inputs[level], level, config) for level in reversed(range(len(widths))))
        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Num[Tensor, " b"],
        context: Float[Tensor, "b l d"],
        pooled: Float[Tensor, "b p"] | None = None,
        sizes: Num[Tensor, "b s"] | None = None,
        residuals: Sequence[Tensor] | None = None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """Denoise latents of any height and width.

        `t` is in training timesteps, 0 to 999, and may be fractional. SDXL alone takes the pooled text and `sizes`, in
        pixels (as `pooled` unCLIP takes a picture's embedding, the x4 upscaler its noise level): original height and
        width, crop top and left, then target height and width (the refiner: an aesthetic score in place of these two).
        `residuals`, from a ControlNet, are added to the outputs of the way down, the last to the middle's. `guidance`,
        the scale less 1, is for latent consistency models alone. Raises `ReverieError` where a width is not the
        config's.
        """
        self._check(x, context)
        emb = self._embed(t, pooled, sizes, guidance)
        return self.finish(self.levels(self.conv_in(x), emb, context, residuals))

    def finish(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        """Make the prediction of what the last level gives."""
        return self.conv_out(self.conv_norm_out(x))

    def levels(
        self,
        x: Float[Tensor, "b c h w"],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
        residuals: Sequence[Tensor] | None,
    ) -> Float[Tensor, "b c h w"]:
        """Apply all levels, down and up, to what `conv_in` made."""
        skips, x = self.descend(x, emb, context, residuals)
        return self.ascend(x, skips, emb, context)

    def ascend(
        self,
        x: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        emb: Float[Tensor, "b e"],
        context: Float[Tensor, "b l d"],
    ) -> Float[Tensor, "b out h2 w2"]:
        """Apply the way up to the middle's output, as many layers as there are outputs of the way down."""
        for block in self.up_blocks:
            x = block(x, skips, emb, context)
        return x


def _input_widths(widths: Sequence[int], layers: int) -> tuple[list[list[int]], list[list[int]]]:
    """List, for each level, the input widths of its residual blocks on the way down and on the way up."""
    down, skips = [], [widths[0]]
    for width, following in zip(widths, [*widths[1:], None], strict=True):
        down.append([skips[-1]] + [width] * (layers - 1))
        skips += [width] * (layers if following is None else layers + 1)
    up, x = [], widths[-1]
    for width in reversed(widths):
        # One block more than on the way down: it joins the output of the previous level, or of conv_in.
        inputs = [x] + [width] * layers
        up.append([i + skips.pop() for i in inputs])
        x = width
    return down, up[::-1]
