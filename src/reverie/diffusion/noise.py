"""Noise: standard normal latents from each sample's own seed, drawn on the CPU whatever the batch or device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

NEARLY_PARALLEL = 0.9995  # |cos| above which slerp is lerp, to divide by no vanishing sine (nateraw's threshold)


class Noise:
    """Draw standard normal latents, sample k of a batch from torch.Generator("cpu").manual_seed(seeds[k]) alone.

    A picture made in a batch therefore has the noise of the picture made alone. The draws are float32 of the given
    shape (c, h, w); they are made on the CPU, where a seed means the same on every machine, and moved to device.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._first = self._draw()

    def initial(self) -> Float[Tensor, "b ..."]:
        """Give the first draw of every generator, the same tensor each time it is asked for."""
        return self._first

    def next(self) -> Float[Tensor, "b ..."]:
        """Give the next draw of every generator; the first call gives the second draw."""
        return self._draw()

    def _draw(self) -> Tensor:
        draws = [torch.randn(self.shape, generator=generator) for generator in self._generators]
        drawn = torch.stack(draws)
        if self.device.type == "cuda":  # from pinned memory, so that the host need not wait for the device
            return drawn.pin_memory().to(self.device, non_blocking=True)
        return drawn.to(self.device)


def slerp(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."], w: float) -> Float[Tensor, "b ..."]:
    """Go the fraction w of the great circle from a to b, each sample of the batch on its own.

    The angle is that between the directions of a and b, the weights apply to a and b as they are (so the norms are
    interpolated too), and nearly parallel samples are interpolated linearly. Source: Shoemake 1985;
    nateraw/stable-diffusion-videos (whose angle is one for the whole batch).
    """
    a_direction, b_direction = (torch.nn.functional.normalize(v.flatten(1), dim=1) for v in (a, b))
    cosine = (a_direction * b_direction).sum(1).view(-1, *[1] * (a.ndim - 1))
    angle = cosine.clamp(-NEARLY_PARALLEL, NEARLY_PARALLEL).acos()
    arc = (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()
    return torch.where(cosine.abs() > NEARLY_PARALLEL, torch.lerp(a, b, w), arc)
