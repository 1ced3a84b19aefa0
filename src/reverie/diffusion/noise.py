"""Noise: standard normal latents from each sample's own seed, drawn on the CPU whatever the batch or device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.denoiser import ScheduleConfig
from reverie.diffusion.schedule import Schedule

NEARLY_PARALLEL = 0.9995  # |cos| above which slerp is lerp, to divide by no vanishing sine (nateraw's threshold)


Draw = Callable[[Sequence[int]], Tensor]
"""Return the next standard normal numbers of a generator, float32 of a shape, on the CPU."""
Source = Callable[[int], Draw]
"""Seed a generator."""


class Noise:
    """Draw standard normal latents, sample k of a batch from a generator seeded with seeds[k] alone.

    A picture made in a batch therefore has the noise of the picture made alone. The draws are float32 of the given
    shape (c, h, w); they are made on the CPU, where a seed means the same on every machine, and moved to device.
    `source` is the kind of generator: torch's own for the CPU, or one of SOURCES.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        source: Source | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self._sources = [(source or cpu_source)(seed) for seed in seeds]
        self._first = self._draw()

    def initial(self) -> Float[Tensor, "b ..."]:
        """Give the first draw of every generator, the same tensor each time it is asked for."""
        return self._first

    def next(self) -> Float[Tensor, "b ..."]:
        """Give the next draw of every generator; the first call gives the second draw."""
        return self._draw()

    def _draw(self) -> Tensor:
        drawn = torch.stack([draw(self.shape) for draw in self._sources])
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


@dataclass(frozen=True, eq=False)
class EmbeddingNoise:
    """Noise CLIP's embeddings of pictures, as unCLIP does (Ramesh et al. 2204.06125, section 2.1; here by a schedule).

    They are brought to the `mean` 0 and deviation (`std`) 1 for it, and back: generative-models'
    CLIPEmbeddingNoiseAugmentation.
    """

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    schedule: Schedule

    def __call__(self, embedding: Float[Tensor, "b d"], eps: Float[Tensor, "b d"], level: int) -> Float[Tensor, "b d"]:
        """Return embeddings at a level, a timestep of the schedule: 0 leaves nearly all, the last one nothing."""
        mean, std = self.mean.to(embedding), self.std.to(embedding)
        levels = torch.full((len(embedding),), level, device=embedding.device)
        return self.schedule.add_noise((embedding - mean) / std, eps.to(embedding), levels) * std + mean


@dataclass(frozen=True)
class PictureNoise:
    """Noise pictures in [-1, 1] before a U-Net sees them that enlarges them, at levels from 0 to `max_level`.

    The defaults are those of SD 2's x4 upscaler (ldm: ImageConcatWithNoiseAugmentation), after Ho et al. 2106.15282,
    "Cascaded Diffusion Models", section 4.
    """

    config: ScheduleConfig = ScheduleConfig(beta_start=0.0001, beta_end=0.02)
    max_level: int = 350

    def __call__(self, x: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], level: int) -> Tensor:
        """Return pictures at a level, a timestep of the schedule."""
        return self.config.schedule().add_noise(x, eps, torch.full((len(eps),), level, device=x.device))


def cpu_source(seed: int) -> Draw:
    """Seed torch's generator for the CPU (mt19937)."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda shape: torch.randn(tuple(shape), generator=generator)


def gpu_source(seed: int) -> Draw:
    """Seed what `torch.randn(..., device="cuda")` draws on an NVIDIA GPU: Philox 4x32-10 and Box-Muller (cuRAND).

    Number k of draw n comes from the counter (n, 0, k, 0) under the key of the seed's low and high 32 bits, for fewer
    numbers than the GPU has threads, as latents are. Source: PyTorch's DistributionTemplates.h, cuRAND's
    curand_philox4x32_x.h and curand_normal.h; stable-diffusion-webui's modules/rng_philox.py does the same in numpy.
    """
    draws = 0

    def draw(shape: Sequence[int]) -> Tensor:
        nonlocal draws
        count = math.prod(shape)
        zero = torch.zeros(count, dtype=torch.int64)
        counter = [zero + draws, zero, torch.arange(count), zero]
        draws += 1
        first, second = philox(counter, [seed & WORD, seed >> 32 & WORD])[:2]
        u = (first.double() + 0.5) * 2.0**-32
        angle = (second.double() + 0.5) * 2.0**-32 * 2 * math.pi
        return ((-2 * u.log()).sqrt() * angle.sin()).float().view(tuple(shape))

    return draw


def cpu_then_gpu_source(seed: int) -> Draw:
    """Seed both generators: the first draw is the CPU's, and the later ones are a GPU's from its first on (ComfyUI)."""
    later, first = gpu_source(seed), [cpu_source(seed)]

    def draw(shape: Sequence[int]) -> Tensor:
        return first.pop()(shape) if first else later(shape)

    return draw


SOURCES: dict[str, Source] = {"cpu": cpu_source, "gpu": gpu_source, "cpu_then_gpu": cpu_then_gpu_source}

WORD = 0xFFFFFFFF
_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: Sequence[int], rounds: int = 10) -> list[Tensor]:
    """Return four words of 32 bits for each counter of four words (int64 tensors): Philox 4x32 (Salmon et al. 2011)."""
    a, b, c, d = counter
    low, high = key
    for _ in range(rounds):
        x, y = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # of 64 bits, that wrap as unsigned ones do
        a, b, c, d = (y >> 32 & WORD) ^ b ^ low, y & WORD, (x >> 32 & WORD) ^ d ^ high, x & WORD
        low, high = low + _WEYL[0] & WORD, high + _WEYL[1] & WORD
    return [a, b, c, d]
