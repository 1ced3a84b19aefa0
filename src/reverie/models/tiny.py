"""How are latents decoded in a moment? By TAESD, a tiny autoencoder distilled from Stable Diffusion's.

Source: Ollin Boer Bohan, madebyollin/taesd. The parameters are named as in diffusers' `AutoencoderTiny`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import ReverieError

BOUND = 3.0  # latents are softly kept within [-3, 3]


@dataclass(frozen=True)
class TinyConfig:
    """Describe a tiny autoencoder: blocks of the encoder's stages, from the picture; the decoder's are reversed."""

    latent_channels: int = 4
    channels: int = 64
    blocks: tuple[int, ...] = (1, 3, 3, 3)


class Block(nn.Module):
    """Add three 3x3 convolutions with ReLU in between to the input, and end with a ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Map images in [-1, 1] to scaled latents."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = []
        for stage, blocks in enumerate(config.blocks):
            first = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
            layers.append(first if stage else nn.Conv2d(3, width, 3, padding=1))
            layers += [Block(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.layers((x + 1) / 2)


class TinyDecoder(nn.Module):
    """Map scaled latents to images, mostly within [-1, 1]."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width, last = config.channels, len(config.blocks) - 1
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
        for stage, blocks in enumerate(reversed(config.blocks)):
            layers += [Block(width) for _ in range(blocks)]
            if stage < last:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        return self.layers(torch.tanh(z / BOUND) * BOUND) * 2 - 1


class TinyAutoencoder(nn.Module):
    """Encode images to scaled latents and decode scaled latents; a file may hold either half alone."""

    def __init__(self, config: TinyConfig = TinyConfig(), *, encoder: bool = True, decoder: bool = True):
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config) if encoder else None
        self.decoder = TinyDecoder(config) if decoder else None

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width."""
        return 2 ** (len(self.config.blocks) - 1)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Encode images in [-1, 1]; raise ReverieError where there is no encoder or a side is no multiple."""
        height, width = images.shape[2:]
        if self.encoder is None:
            raise ReverieError("this TAESD has only a decoder; give taesd_encoder, or diffusers' file, which has both")
        if height % self.factor or width % self.factor:
            raise ReverieError(f"cannot encode images of {width}x{height} pixels; give multiples of {self.factor}")
        return self.encoder(images)

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Decode scaled latents; raise ReverieError where there is no decoder or the channels are not its own."""
        if self.decoder is None:
            raise ReverieError("this TAESD has only an encoder; give taesd_decoder, or diffusers' file, which has both")
        if z.shape[1] != self.config.latent_channels:
            raise ReverieError(f"cannot decode {z.shape[1]} latent channels; give {self.config.latent_channels}")
        return self.decoder(z)
