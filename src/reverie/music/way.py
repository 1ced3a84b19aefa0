"""What is the model told on the way from prompt to prompt? Embeddings, guidance and strength, gone between linearly."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from reverie.animation import blend
from reverie.diffusion.denoiser import Denoise
from reverie.diffusion.step import Sigmas
from reverie.diffusion.windows import Windows, by_rows, windowed
from reverie.generate import conditioning
from reverie.generate.conditioning import Prompts
from reverie.generate.sample import guided_denoiser
from reverie.requests.music import Stop
from reverie.requests.pictures import TextToImage
from reverie.system import Conditioning, StableDiffusion

BATCH = 8  # windows that pass the network together


@dataclass(frozen=True, eq=False)
class Told:
    """Hold what the model is told at one place."""

    prompts: Prompts
    guidance: float
    strength: float

    def between(self, other: Told, w: float) -> Told:
        """Go the fraction w of the straight line to another (Riffusion: riffusion_pipeline.py, riffuse)."""
        prompts = blend.between(self.prompts, other.prompts, w, Conditioning.lerp)
        guidance = self.guidance + w * (other.guidance - self.guidance)
        return Told(prompts, guidance, self.strength + w * (other.strength - self.strength))

    @property
    def form(self) -> Hashable:
        """Return what must be alike for places to be denoised in one batch: guidance, and the prompts' parts."""
        guides = (*self.prompts.positive, self.prompts.negative)
        lengths = ([(until, conditioning.tokens.shape[1]) for until, conditioning in guide.stages] for guide in guides)
        return self.guidance, blend.weights(self.prompts), tuple(map(tuple, lengths))


@dataclass(frozen=True, eq=False)
class Way:
    """Hold what is told at each stop."""

    told: tuple[Told, ...]

    def at(self, place: float) -> Told:
        """Return what is told at a place: 1.25 lies a quarter of the way from the second stop to the third."""
        begin = min(int(place), len(self.told) - 1)
        if place == begin:
            return self.told[begin]
        return self.told[begin].between(self.told[begin + 1], place - begin)


def prepared(system: StableDiffusion, stops: Sequence[Stop], shared: TextToImage) -> Way:
    """Encode the prompts of all stops."""
    return Way(tuple(_told(system, stop, shared) for stop in stops))


def _told(system: StableDiffusion, stop: Stop, shared: TextToImage) -> Told:
    guidance, strength = stop.guidance or 0.0, stop.strength or 1.0
    asked = shared.replace(prompt=stop.prompt, negative=stop.negative or "", guidance=guidance)
    return Told(conditioning.encode(system, asked), guidance, strength)


def denoiser(
    system: StableDiffusion, shared: TextToImage, sigmas: Sigmas, windows: Windows, told: Sequence[Told]
) -> Denoise:
    """Denoise windows together, each towards what it is told."""

    @cache  # most windows are told what others are
    def of(*batch: Told) -> Denoise:
        prompts = blend.stacked([one.prompts for one in batch])
        return guided_denoiser(system, shared.replace(guidance=batch[0].guidance), prompts, sigmas)

    batches = list(_batches(told))
    return windowed(by_rows([of(*batch) for batch in batches], [len(batch) for batch in batches]), windows)


def _batches(told: Sequence[Told]) -> Iterator[list[Told]]:
    for _, alike in groupby(told, key=lambda one: one.form):
        run = list(alike)
        yield from (run[start : start + BATCH] for start in range(0, len(run), BATCH))
