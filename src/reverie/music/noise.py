"""Which noise does music start from? A longer clip's begins with a shorter one's; each clip of a walk begins anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.noise import Noise, slerp
from reverie.music.plan import Plan


class ClipNoise(Noise):
    """Draw the noise of a plan's latents: picture by picture of `shape`, side by side, of which the first is `Noise`'s.

    `places` say for each clip where it is on the way between the seeds: 1.25 lies a quarter of the great circle from
    the second to the third. Clips at one place have one noise, so that what is played goes on from clip to clip, as in
    Riffusion.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        plan: Plan,
        places: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self._seeds, self._plan, self._places = tuple(seeds), plan, tuple(places)
        super().__init__(seeds, shape, device)

    def _draw(self) -> Float[Tensor, "1 c h length"]:
        count = math.ceil(self._plan.clip_length / self.shape[-1])
        drawn = torch.cat([super(ClipNoise, self)._draw() for _ in range(count)], dim=-1)
        drawn = drawn[..., : self._plan.clip_length]
        return self._plan.laid_out(torch.cat([self._between(drawn, place) for place in self._places]))

    def _between(self, drawn: Float[Tensor, "seeds c h w"], place: float) -> Float[Tensor, "1 c h w"]:
        begin = min(int(place), len(self._seeds) - 1)
        end, w = min(begin + 1, len(self._seeds) - 1), place - begin
        a, b = drawn[begin : begin + 1], drawn[end : end + 1]
        return a if w == 0 or self._seeds[begin] == self._seeds[end] else slerp(a, b, w)
