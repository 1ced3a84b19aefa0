"""The image codec: pictures to scaled latents and back, pictures enlarged by networks, and previews of latents.

The latent scale factor is applied here alone. A large picture passes layer by layer, each layer in strips (see
`slices`). Beyond 2048 x 2048 pixels even that is too much, and all but the middle is tiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from reverie.codecs.slices import decode_in_strips, decode_in_tiles, encode_in_strips, encode_in_tiles, lay_tiles
from reverie.errors import ReverieError
from reverie.media.pictures import to_rgb
from reverie.models.autoencoder import AutoencoderConfig, ImageAutoencoder, TinyAutoencoder, TinyConfig
from reverie.models.upscalers import Upscaler
from reverie.progress import Progress

WHOLE = 768 * 768  # pixels, where the widest layer of a bfloat16 decoder holds 0.3 GB; at 1024 x 1024, 0.54 GB
WHOLE_PACKED = 512 * 512 - 1  # of a wide one that is packed for the CPU, where strips cost 2 % of the time
STRIPS = 2048 * 2048  # pixels, where it holds 4.3 GB


@dataclass(frozen=True, eq=False)
class ImageCodec:
    """Encode pictures to scaled latents and decode scaled latents, through an autoencoder.

    Pictures of more than `whole` pixels pass it in slices, which takes less memory and changes rounding alone, those of
    more than `strips` in tiles. Where float16 overflows, as in the autoencoder that came with SDXL, the work is done
    again in float32.
    """

    autoencoder: ImageAutoencoder
    whole: int = WHOLE
    strips: int = STRIPS

    @property
    def factor(self) -> int:
        """Return how many pixels a latent spans in height and in width."""
        return self.autoencoder.factor

    def without_tiles(self) -> ImageCodec:
        """Return a codec for convolutions that wrap: in tiles they would not meet at the outer edges."""
        return replace(self, strips=sys.maxsize)

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
        pixels = images[0, 0].numel()
        large = encode_in_tiles if pixels > self.strips else encode_in_strips
        run, parts = (large, images.split(1)) if pixels > self.whole else (type(self.autoencoder).encode, (images,))
        latents = [self._finite(lambda model, part: run(model, part).mode(), part) for part in parts]
        return scale_latents(torch.cat(latents), self.autoencoder.config)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hf wf"]:
        """Decode scaled latents to float32 images in [-1, 1], clipped.

        They pass the decoder one by one, so a picture does not depend on its batch, and memory does not grow with it.
        """
        z = unscale_latents(latents, self.autoencoder.config)
        pixels = z[0, 0].numel() * self.factor**2
        large = decode_in_tiles if pixels > self.strips else decode_in_strips
        run = large if pixels > self.whole else type(self.autoencoder).decode
        return torch.cat([self._finite(run, one) for one in z.split(1)]).clamp(-1, 1)

    def _finite(self, run: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
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


def scale_latents(z: Float[Tensor, "b c h w"], config: AutoencoderConfig | TinyConfig) -> Float[Tensor, "b c h w"]:
    """Bring an autoencoder's latents to about unit variance, as a U-Net sees them."""
    scale, mean = _moments(config, z)
    return (z - mean) * scale


def unscale_latents(
    latents: Float[Tensor, "b c h w"], config: AutoencoderConfig | TinyConfig
) -> Float[Tensor, "b c h w"]:
    """Undo `scale_latents`."""
    scale, mean = _moments(config, latents)
    return latents / scale + mean


def _moments(config: AutoencoderConfig | TinyConfig, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
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
    rows = np.stack([np.asarray(to_rgb(picture), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(rows).permute(0, 3, 1, 2) / 127.5 - 1


def to_levels(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """Turn images in [-1, 1] into levels of eight bits, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pictures(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Turn images in [-1, 1] into pictures of eight bits, rounded."""
    return [Image.fromarray(row) for row in to_levels(images).permute(0, 2, 3, 1).cpu().numpy()]


TILE, MARGIN, RAMP = 256, 16, 16  # pixels: a tile's side, what is thrown away at its cuts, over what tiles are blended
PASSES = 3


@dataclass(frozen=True)
class Enlargement(Progress):
    """How far an enlargement is, in tiles; the last one has the `picture`."""

    picture: Image.Image | None = None


def enlarge(network: Upscaler, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarge a picture, RGB or RGBA, to a size in pixels by a learned upscaler. See `enlarge_to`."""
    *_, last = enlarge_to(network, picture, size)
    assert last.picture is not None
    return last.picture


def enlarge_to(network: Upscaler, picture: Image.Image, size: tuple[int, int]) -> Iterator[Enlargement]:
    """Enlarge a picture by a learned upscaler to at least a size, in up to PASSES, and bring it there by Lanczos.

    So does AUTOMATIC1111 (modules/upscaler.py). Yields how far it is, and last the picture.
    """
    for _ in range(PASSES):
        for step in enlarge_tiles(network, picture):
            picture = step.picture or picture
            yield replace(step, picture=None)
        if network.scale == 1 or (picture.width >= size[0] and picture.height >= size[1]):
            break
    yield replace(step, picture=picture.resize(size, Image.Resampling.LANCZOS))


@torch.no_grad()
def enlarge_tiles(network: Upscaler, picture: Image.Image) -> Iterator[Enlargement]:
    """Enlarge a picture, RGB or RGBA, by a learned upscaler, tile by tile; how transparent it is, by Lanczos.

    A tile sees MARGIN pixels beyond what is kept of it, and tiles are blended over RAMP: where the network sees no
    further, it is the picture that the whole would give. Memory for its layers is that of one tile.
    """
    image, weight = (to_tensor([picture.convert("RGB")]) + 1) / 2, next(network.parameters())
    rows, columns = (lay_tiles(length, network.scale, (TILE, MARGIN, RAMP)) for length in image.shape[2:])
    whole = image.new_zeros(1, 3, *(length * network.scale for length in image.shape[2:]))
    total = len(rows) * len(columns)
    for number, ((top, bottom, down), (left, right, across)) in enumerate(product(rows, columns), 1):
        tile = network(image[:, :, top:bottom, left:right].to(weight)).float().cpu()
        place = (slice(one * network.scale, other * network.scale) for one, other in ((top, bottom), (left, right)))
        whole[:, :, *place] += tile * down[:, None] * across
        if number < total:
            yield Enlargement(number, total, "tiles")
    (larger,) = to_pictures(whole.mul_(2).sub_(1))
    if picture.mode == "RGBA":
        larger.putalpha(picture.getchannel("A").resize(larger.size, Image.Resampling.LANCZOS))
    larger.info = dict(picture.info)
    yield Enlargement(total, total, "tiles", larger)


PATCHES, PATCH = 8, 4  # the fit's picture is a mosaic: PATCHES x PATCHES colours, each of PATCH x PATCH latents


@dataclass(frozen=True, eq=False)
class LinearPreview:
    """Show scaled latents as pictures of a pixel for each latent, enlarged `factor` times: colour = latent A + b."""

    matrix: Float[Tensor, "c 3"]
    bias: Float[Tensor, " 3"]
    factor: int

    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Draw the preview of each sample."""
        colours = torch.einsum("bchw,cr->brhw", latents.float().cpu(), self.matrix) + self.bias.view(1, 3, 1, 1)
        small = to_pictures(colours.clamp(-1, 1))
        return [
            one.resize((one.width * self.factor, one.height * self.factor), Image.Resampling.BICUBIC) for one in small
        ]


@dataclass(frozen=True, eq=False)
class TinyPreview:
    """Show scaled latents through a TAESD."""

    model: TinyAutoencoder
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode the preview of each sample."""
        return to_pictures(self.model.decode(latents.to(self.device, self.dtype)))


def fit_preview(codec: ImageCodec) -> LinearPreview:
    """Fit by least squares the map from the latents of a mosaic of random colours to the colours."""
    generator = torch.Generator("cpu").manual_seed(0)
    colours = 2 * torch.rand((1, 3, PATCHES, PATCHES), generator=generator) - 1
    cells = F.interpolate(colours, scale_factor=PATCH, mode="nearest")
    latents = codec.encode_tensor(F.interpolate(cells, scale_factor=codec.factor, mode="nearest")).cpu()
    inputs, targets = latents[0].flatten(1).T.double(), cells[0].flatten(1).T.double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.float()
    return LinearPreview(solution[:-1], solution[-1], codec.factor)
