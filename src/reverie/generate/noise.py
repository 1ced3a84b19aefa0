"""Which noise does a picture start from? Its seed's, gone part of the way to another seed's, or of another size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.noise import SOURCES, Noise, Source, slerp
from reverie.requests.pictures import TextToImage

Shape = tuple[int, int, int]


class Varied(Noise):
    """Draw as `Noise` does, but for the first draw, which is given."""

    def __init__(
        self, seeds: Sequence[int], first: Float[Tensor, "b c h w"], device: torch.device | str, source: Source
    ) -> None:
        super().__init__(seeds, first.shape[1:], device, source)
        self._first = first.to(self.device)


def starting_noise(
    singles: Sequence[TextToImage], shape: Shape, factor: int, device: torch.device | str = "cpu"
) -> Noise:
    """Give the noise of requests for one picture each, drawn together; `factor` is how many pixels a latent spans."""
    seeds, source = [single.seed for single in singles], SOURCES[singles[0].rng]
    if singles[0].variation is None:
        return Noise(seeds, shape, device, source)
    return Varied(seeds, torch.stack([_varied(single, shape, factor) for single in singles]), device, source)


def _varied(single: TextToImage, shape: Shape, factor: int) -> Float[Tensor, "c h w"]:
    """Draw as AUTOMATIC1111 does (modules/rng.py), whose slerp turns each column of the noise on its own."""
    draw, variation = SOURCES[single.rng], single.variation
    if variation is None:
        return draw(single.seed)(shape)
    channels, height, width = shape
    small = (channels, (variation.height or 0) // factor or height, (variation.width or 0) // factor or width)
    noise = draw(single.seed)(small)
    if variation.strength:
        columns, others = (one.transpose(1, 2).flatten(0, 1) for one in (noise, draw(variation.seed)(small)))
        turned = slerp(columns, others, variation.strength)
        noise = turned.unflatten(0, (channels, small[2])).transpose(1, 2)
    if small == shape:
        return noise
    whole = draw(single.seed)(shape)
    rows, columns_ = _overlap(height, small[1]), _overlap(width, small[2])
    whole[:, rows[0], columns_[0]] = noise[:, rows[1], columns_[1]]
    return whole


def _overlap(whole: int, part: int) -> tuple[slice, slice]:
    """Return what a centred part covers of the whole, and which of the part that is."""
    length = min(whole, part)
    outer, inner = (whole - part) // 2 if whole > part else 0, (part - whole) // 2 if part > whole else 0
    return slice(outer, outer + length), slice(inner, inner + length)
