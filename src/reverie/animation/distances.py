"""How different do two pictures look? Distances for pacing, made of what a network sees in them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.animation.pacing import Distance
from reverie.codecs.image import to_tensor
from reverie.models.lpips import LPIPS

REMEMBERED = 4  # pictures whose features are kept: pacing compares each with the two before it

Embed = Callable[[Sequence[Image.Image]], Float[Tensor, "n d"]]
"""Pictures to features, such as `Clip.embed_images`."""


def angle(embed: Embed) -> Distance[Image.Image]:
    """Measure the angle between two pictures' features, in radians, from 0 to pi: `angle(clip.embed_images)`.

    Half the angle is found by its sine: the cosine of a small angle is all but 1, and would tell little of it.
    """
    seen = _remembered(lambda picture: embed([picture])[0].double())

    def distance(a: Image.Image, b: Image.Image) -> float:
        x, y = (torch.nn.functional.normalize(seen(picture), dim=0) for picture in (a, b))
        return 2 * math.asin(min(1.0, (x - y).norm().item() / 2))

    return distance


def lpips(model: LPIPS) -> Distance[Image.Image]:
    """Measure LPIPS, with the user's weights: `lpips(LPIPS.load(vgg, lins))`."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def distance(a: Image.Image, b: Image.Image) -> float:
        x, y = (to_tensor([picture]).to(device) for picture in (a, b))
        return float(model(x, y))

    return distance


def _remembered(features: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
    """Compute the features of a picture once for as long as it is among the latest asked for."""
    latest: deque[tuple[Image.Image, Tensor]] = deque(maxlen=REMEMBERED)

    def found(picture: Image.Image) -> Tensor:
        for known, value in latest:
            if known is picture:
                return value
        latest.append((picture, features(picture)))
        return latest[-1][1]

    return found
