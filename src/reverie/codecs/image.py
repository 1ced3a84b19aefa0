"""How do pictures become the latents that a U-Net sees, and back? Here alone the latent scale factor is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs import slices
from reverie.errors import ReverieError
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig

WHOLE = 768 * 768  # pixels, where the widest layer of a float32 decoder holds 0.6 GB; at 1024 x 1024, 1.07 GB


@dataclass(frozen=True, eq=False)
class ImageCodec:
    """Encode pictures to scaled latents and decode scaled latents, through an autoencoder.

    Pictures of more than `whole` pixels pass it in slices, which takes less memory and changes rounding alone. Where
    float16 overflows, as in the autoencoder that came with SDXL, the work is done again in float32.
    """

    autoencoder: Autoencoder
    whole: int = WHOLE

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
        return self.encode_tensor(to_tensor(pictures))

    @torch.no_grad()
    def encode_tensor(self, images: Float[Tensor, "b 3 hf wf"]) -> Float[Tensor, "b c h w"]:
        """Encode images in [-1, 1] as `encode` does pictures; those that pass in slices, one by one."""
        large = images[0, 0].numel() > self.whole
        run, parts = (slices.encode, images.split(1)) if large else (Autoencoder.encode, (images,))
        latents = [self._finite(lambda model, part: run(model, part).mode(), part) for part in parts]
        return scale_latents(torch.cat(latents), self.autoencoder.config)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hf wf"]:
        """Decode scaled latents to float32 images in [-1, 1], clipped.

        They pass the decoder one by one, so a picture does not depend on its batch, and memory does not grow with it.
        """
        scale, mean = _moments(self.autoencoder.config, latents)
        z = latents / scale + mean
        run = slices.decode if z[0, 0].numel() * self.factor**2 > self.whole else Autoencoder.decode
        return torch.cat([self._finite(run, one) for one in z.split(1)]).clamp(-1, 1)

    def _finite(self, run: Callable[[Autoencoder, Tensor], Tensor], x: Tensor) -> Tensor:
        """Run the autoencoder in its own dtype, and again in float32 where that overflows; float32."""
        model = self.autoencoder
        result: Tensor = model(lambda model, x: run(model, x.to(model.device, model.dtype)), x).float()
        if model.dtype == torch.float32 or result.isfinite().all():
            return result
        return run(deepcopy(model).float(), x.to(model.device))

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode scaled latents to pictures."""
        return to_pictures(self.decode(latents))


def scale_latents(z: Float[Tensor, "b c h w"], config: AutoencoderConfig) -> Float[Tensor, "b c h w"]:
    """Bring an autoencoder's latents to about unit variance, as a U-Net sees them."""
    scale, mean = _moments(config, z)
    return (z - mean) * scale


def _moments(config: AutoencoderConfig, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return what latents are multiplied by, and their mean, which is taken off before (diffusers: SDXL's pipeline)."""
    if config.latents_mean is None or config.latents_std is None:
        return config.scaling_factor, 0.0
    mean, std = (like.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
    return config.scaling_factor / std, mean


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
