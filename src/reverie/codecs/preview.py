"""How do latents become a quick look at the picture? By the straight line that best maps them to colours.

The latents of Stable Diffusion are nearly a small picture: each position's colour is nearly linear in its channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs.image import ImageCodec, to_pictures
from reverie.models.tiny import TinyAutoencoder

PATCHES, CELLS = 8, 4  # the fit's picture is a mosaic: PATCHES x PATCHES colours, each of CELLS x CELLS latents


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
    cells = F.interpolate(colours, scale_factor=CELLS, mode="nearest")
    latents = codec.encode_tensor(F.interpolate(cells, scale_factor=codec.factor, mode="nearest")).cpu()
    inputs, targets = latents[0].flatten(1).T.double(), cells[0].flatten(1).T.double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.float()
    return LinearPreview(solution[:-1], solution[-1], codec.factor)
