"""The KL-regularised autoencoder of latent diffusion, and TAESD, a tiny autoencoder distilled from it.

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix E, with the
parameters named as in diffusers' `AutoencoderKL`; madebyollin/taesd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.layers import AsymmetricDownsample, GroupNormSiLU, ImageAttention, ResidualBlock, Upsample

EPS = 1e-6  # of every GroupNorm in the autoencoder


@dataclass(frozen=True)
class AutoencoderConfig:
    """Describe an autoencoder by the names of diffusers' config.json; the defaults are Stable Diffusion 1's.

    `latents_mean` and `latents_std` are those of each channel, where the U-Net sees latents that are standardised.
    `patch_size` (diffusers: of AutoencoderKLWan) is the side of the squares of pixels whose colours are the channels of
    one place, in place of levels of that size; `in_channels` and `out_channels` count them all.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512
    force_upcast: bool = False
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    patch_size: int = 1

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width: 8 with four levels, 16 with five."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


AUTOENCODERS: dict[str, AutoencoderConfig] = {
    "sd": AutoencoderConfig(),
    "sdxl": AutoencoderConfig(scaling_factor=0.13025, sample_size=1024, force_upcast=True),
    "x4-upscaler": AutoencoderConfig(block_out_channels=(128, 256, 512), scaling_factor=0.08333, sample_size=256),
}


@dataclass(frozen=True)
class DiagonalGaussian:
    """Hold the posterior over latents, N(mean, exp(logvar)), independent in every coordinate."""

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]

    def mode(self) -> Float[Tensor, "b c h w"]:
        """Return the likeliest latents."""
        return self.mean

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Draw latents from standard normal `noise`, differentiably."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, " b"]:
        """Return the divergence from the standard normal in nats, summed over each sample's coordinates."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(dim=(1, 2, 3))


class AutoencoderBlock(nn.Module):
    """Apply the residual blocks of one level, then its resampling where it has one."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, groups: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(ResidualBlock(i, o, groups=groups, eps=EPS) for i, o in pairwise(widths))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class DownEncoderBlock(AutoencoderBlock):
    """Apply the residual blocks of one encoder level, then halve the image unless the level is the last."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, groups: int, last: bool):
        super().__init__(in_channels, out_channels, layers=layers, groups=groups)
        self.downsamplers = nn.Sequential() if last else nn.Sequential(AsymmetricDownsample(out_channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        return self.downsamplers(super().forward(x))


class UpDecoderBlock(AutoencoderBlock):
    """Apply the residual blocks of one decoder level, then double the image unless the level is the last."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, groups: int, last: bool):
        super().__init__(in_channels, out_channels, layers=layers, groups=groups)
        self.upsamplers = nn.Sequential() if last else nn.Sequential(Upsample(out_channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        return self.upsamplers(super().forward(x))


class AutoencoderMidBlock(nn.Module):
    """Apply a residual block, attention over all pixels and another residual block at the lowest resolution."""

    def __init__(self, channels: int, *, groups: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.Sequential(ImageAttention(channels, groups=groups, eps=EPS)) if attention else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions(x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    """Map images to the means and log-variances of their latents."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.Sequential(
            *(
                DownEncoderBlock(i, o, layers=config.layers_per_block, groups=groups, last=last)
                for i, o, last in _levels(widths)
            )
        )
        self.mid_block = AutoencoderMidBlock(widths[-1], groups=groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = GroupNormSiLU(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b moments h2 w2"]:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(self.conv_norm_out(x))


class Decoder(nn.Module):
    """Map latents to images, with one residual block a level more than the encoder."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = AutoencoderMidBlock(widths[0], groups=groups, attention=config.mid_block_add_attention)
        self.up_blocks = nn.Sequential(
            *(
                UpDecoderBlock(i, o, layers=config.layers_per_block + 1, groups=groups, last=last)
                for i, o, last in _levels(widths)
            )
        )
        self.conv_norm_out = GroupNormSiLU(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(self.conv_norm_out(x))


RunHalf = Callable[[Any, Tensor], Tensor]
"""(encoder or decoder, its input) -> its output."""


class ImageAutoencoder(nn.Module):
    """What the image codec knows of an autoencoder: images in [-1, 1] to distributions of latents, latents to images.

    Latents are unscaled here: `config.scaling_factor` is applied by the image codec alone.
    """

    config: AutoencoderConfig | TinyConfig
    encoder: Any
    decoder: Any

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width."""
        return self.config.factor

    def encode(self, images: Float[Tensor, "b c h w"], run: RunHalf = nn.Module.__call__) -> DiagonalGaussian:
        """Encode images in [-1, 1], by another way to `run` the encoder where one is given.

        Raises ReverieError where their size is not a multiple of `factor`.
        """
        raise NotImplementedError

    def decode(self, z: Float[Tensor, "b c h w"], run: RunHalf = nn.Module.__call__) -> Float[Tensor, "b out h2 w2"]:
        """Decode latents to images, mostly within [-1, 1], by another way to `run` the decoder where one is given.

        Raises ReverieError for a wrong number of channels.
        """
        raise NotImplementedError

    def decoder_last_weight(self) -> nn.Parameter:
        """Return the weight of the decoder's last convolution, at which adversarial training balances its losses."""
        *_, last = (parameter for parameter in self.decoder.parameters() if parameter.ndim == 4)
        return last

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return what the weights are, and so what images and latents have to be."""
        return next(self.parameters()).dtype

    def forward(self, run: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """Return run(self, x), called so that hooks see it: they bring weights that are kept elsewhere."""
        return run(self, x)

    def _check_images(self, images: Float[Tensor, "b c h w"]) -> None:
        channels, height, width = images.shape[1:]
        own = self.config.in_channels // self.config.patch_size**2
        if channels != own or height % self.factor or width % self.factor:
            raise ReverieError(
                f"cannot encode images of {channels} channels and {width}x{height} pixels; give "
                f"{own} channels, width and height multiples of {self.factor}"
            )

    def _check_latents(self, z: Float[Tensor, "b c h w"]) -> None:
        if z.shape[1] != self.config.latent_channels:
            raise ReverieError(f"cannot decode {z.shape[1]} latent channels; give {self.config.latent_channels}")


class Autoencoder(ImageAutoencoder):
    """Encode images to distributions of latents and decode latents to images: diffusers' AutoencoderKL."""

    config: AutoencoderConfig
    encoder: Encoder
    decoder: Decoder

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.use_post_quant_conv else nn.Identity()

    def encode(self, images: Float[Tensor, "b c h w"], run: RunHalf = nn.Module.__call__) -> DiagonalGaussian:
        """Encode images in [-1, 1], by another way to `run` the encoder where one is given.

        Raises ReverieError where their size is not a multiple of `factor`.
        """
        self._check_images(images)
        moments = self.quant_conv(run(self.encoder, F.pixel_unshuffle(images, self.config.patch_size)))
        mean, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Float[Tensor, "b c h w"], run: RunHalf = nn.Module.__call__) -> Float[Tensor, "b out h2 w2"]:
        """Decode latents to images, mostly within [-1, 1], by another way to `run` the decoder where one is given.

        Raises ReverieError for a wrong number of channels.
        """
        self._check_latents(z)
        return F.pixel_shuffle(run(self.decoder, self.post_quant_conv(z)), self.config.patch_size)


def _levels(widths: Sequence[int]) -> list[tuple[int, int, bool]]:
    """List each level's input width, output width and whether it is the last."""
    inputs = [widths[0], *widths[:-1]]
    return [(i, o, level == len(widths) - 1) for level, (i, o) in enumerate(zip(inputs, widths, strict=True))]


BOUND = 3.0  # latents are softly kept within [-3, 3]


@dataclass(frozen=True)
class TinyConfig:
    """Describe a tiny autoencoder by the names of diffusers' config.json; the defaults are TAESD's for SD 1, 2 and XL.

    Each half has one width throughout, and `num_*_blocks` of each of its stages, in the order they compute in. Latents
    are those that a U-Net sees, so `scaling_factor` is 1.
    """

    in_channels: int = 3
    latent_channels: int = 4
    encoder_width: int = 64
    decoder_width: int = 64
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    latents_mean: None = None
    latents_std: None = None
    patch_size: int = 1

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width."""
        return 2 ** (len(self.num_decoder_blocks) - 1)

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], halves: Sequence[str]) -> TinyConfig:
        """Read the config of some halves, "encoder" and "decoder", off the shapes of their weights."""
        return cls(**{key: value for half in halves for key, value in _read_half(half, shapes).items()})


def _read_half(half: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read the fields of TinyConfig that a half tells: its stages' blocks lie between convolutions of their own."""
    numbers = {int(name.split(".")[2]) for name in shapes if name.startswith(f"{half}.layers.")}
    convolutions = sorted(n for n in numbers if f"{half}.layers.{n}.weight" in shapes)
    first, last = (shapes[f"{half}.layers.{n}.weight"] for n in (convolutions[0], convolutions[-1]))
    return {
        "in_channels": first[1] if half == "encoder" else last[0],
        "latent_channels": last[0] if half == "encoder" else first[1],
        f"{half}_width": first[0],
        f"num_{half}_blocks": tuple(sum(a < n < b for n in numbers) for a, b in pairwise(convolutions)),
    }


class TinyBlock(nn.Module):
    """Add three 3x3 convolutions with ReLU in between to the input, and end with a ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Map images in [0, 1] to scaled latents."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width = config.encoder_width
        layers: list[nn.Module] = []
        for stage, blocks in enumerate(config.num_encoder_blocks):
            first = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            layers.append(first if stage else nn.Conv2d(config.in_channels, width, 3, padding=1))
            layers += [TinyBlock(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.layers(x)


class TinyDecoder(nn.Module):
    """Map scaled latents within [-BOUND, BOUND] to images, mostly within [0, 1]."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width, last = config.decoder_width, len(config.num_decoder_blocks) - 1
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for stage, blocks in enumerate(config.num_decoder_blocks):
            layers += [TinyBlock(width) for _ in range(blocks)]
            if stage < last:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.in_channels, 3, padding=1))

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        return self.layers(z)


class TinyAutoencoder(ImageAutoencoder):
    """Encode images to scaled latents and decode scaled latents; a file may hold either half alone."""

    config: TinyConfig
    encoder: TinyEncoder | None
    decoder: TinyDecoder | None

    def __init__(self, config: TinyConfig = TinyConfig(), *, encoder: bool = True, decoder: bool = True):
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config) if encoder else None
        self.decoder = TinyDecoder(config) if decoder else None

    def encode(self, images: Float[Tensor, "b 3 h w"], run: RunHalf = nn.Module.__call__) -> DiagonalGaussian:
        """Encode images in [-1, 1], by another way to `run` the encoder where one is given; there is no spread.

        Raises ReverieError where there is no encoder or the images do not fit.
        """
        if self.encoder is None:
            raise ReverieError("this TAESD has only a decoder; give taesd_encoder, or diffusers' file, which has both")
        self._check_images(images)
        latents = run(self.encoder, (images + 1) / 2)
        return DiagonalGaussian(latents, torch.full_like(latents, -math.inf))

    def decode(self, z: Float[Tensor, "b c h w"], run: RunHalf = nn.Module.__call__) -> Float[Tensor, "b 3 h2 w2"]:
        """Decode scaled latents, by another way to `run` the decoder where one is given.

        Raises ReverieError where there is no decoder or the channels are not its own.
        """
        if self.decoder is None:
            raise ReverieError("this TAESD has only an encoder; give taesd_decoder, or diffusers' file, which has both")
        self._check_latents(z)
        return run(self.decoder, torch.tanh(z / BOUND) * BOUND) * 2 - 1
