"""How do pictures become the latents that a U-Net sees, and back? Here alone the latent scale factor is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.errors import ReverieError
from reverie.models.autoencoder import Autoencoder


@dataclass(frozen=True, eq=False)
class ImageCodec:
    """Encode pictures to scaled latents and decode scaled latents, through an autoencoder."""

    autoencoder: Autoencoder

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width."""
        return self.autoencoder.factor

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of a picture's latents; raise ReverieError where not whole."""
        for side, pixels in (("width", width), ("height", height)):
            if pixels <= 0 or pixels % self.factor:
                low = pixels // self.factor * self.factor
                near = f"{low} or {low + self.factor}" if low > 0 else f"{self.factor}"
                raise ReverieError(f"{side} {pixels} is not a multiple of {self.factor}; the nearest are {near}")
        return self.autoencoder.config.latent_channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b c h w"]:
        """Encode pictures of one size to float32 latents of about unit variance, the likeliest of their posterior."""
        for picture in pictures:
            self.latent_shape(*picture.size)
        images = to_tensor(pictures).to(self.autoencoder.device, self.autoencoder.dtype)
        posterior = self.autoencoder.encode(images)
        return posterior.mode().float() * self.autoencoder.config.scaling_factor

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hf wf"]:
        """Decode scaled latents to float32 images in [-1, 1], clipped.

        They pass the decoder one by one, so a picture does not depend on its batch, and memory does not grow with it.
        """
        z = (latents / self.autoencoder.config.scaling_factor).to(self.autoencoder.device, self.autoencoder.dtype)
        images = [self.autoencoder.decode(one) for one in z.split(1)]
        return torch.cat(images).float().clamp(-1, 1)

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode scaled latents to pictures."""
        return to_pictures(self.decode(latents))


def to_tensor(pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """Turn pictures of one size into images in [-1, 1]; transparent ones are laid on white."""
    if len({picture.size for picture in pictures}) != 1:
        sizes = ", ".join(sorted({f"{picture.width}x{picture.height}" for picture in pictures})) or "none"
        raise ReverieError(f"pictures of sizes {sizes} do not stack; give one or more of one size")
    rows = np.stack([np.asarray(_on_white(picture), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(rows).permute(0, 3, 1, 2) / 127.5 - 1


def to_pictures(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Turn images in [-1, 1] into pictures of eight bits, rounded."""
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(row) for row in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
