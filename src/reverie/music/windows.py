"""The windows of a clip of music: their noise, their prompts along the way, and a given sound under a mask."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.animation import blend
from reverie.codecs.image import ImageCodec
from reverie.codecs.spectrograms import LIGHT, from_picture, to_greys
from reverie.diffusion.denoiser import Denoise
from reverie.diffusion.noise import Noise, slerp
from reverie.diffusion.step import Sigmas
from reverie.diffusion.windows import Windows, by_rows, multi_diffusion
from reverie.errors import ReverieError
from reverie.generate import conditioning
from reverie.generate.conditioning import Prompts
from reverie.generate.sample import guided_denoiser
from reverie.media.masks import PAINTED
from reverie.media.sound import Sound
from reverie.music.plan import MusicPlan
from reverie.music.sections import encode_levels, mel_of_sound, sound_of_mel
from reverie.requests.music import Music, Stop
from reverie.requests.pictures import TextToImage
from reverie.sound.spectrogram import SpectrogramParams
from reverie.system import Conditioning, StableDiffusion


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
        plan: MusicPlan,
        places: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        self._seeds, self._plan, self._places = tuple(seeds), plan, tuple(places)
        super().__init__(seeds, shape, device)

    def _draw(self) -> Float[Tensor, "1 c h length"]:
        count = math.ceil(self._plan.clip_length / self.shape[-1])
        drawn = torch.cat([super(ClipNoise, self)._draw() for _ in range(count)], dim=-1)
        drawn = drawn[..., : self._plan.clip_length]
        return self._plan.lay_out(torch.cat([self._between(drawn, place) for place in self._places]))

    def _between(self, drawn: Float[Tensor, "seeds c h w"], place: float) -> Float[Tensor, "1 c h w"]:
        begin = min(int(place), len(self._seeds) - 1)
        end, w = min(begin + 1, len(self._seeds) - 1), place - begin
        a, b = drawn[begin : begin + 1], drawn[end : end + 1]
        return a if w == 0 or self._seeds[begin] == self._seeds[end] else slerp(a, b, w)


BATCH = 8  # windows that pass the network together


@dataclass(frozen=True, eq=False)
class Setting:
    """Hold what the model is told at one place."""

    prompts: Prompts
    guidance: float
    strength: float

    def between(self, other: Setting, w: float) -> Setting:
        """Go the fraction w of the straight line to another (Riffusion: riffusion_pipeline.py, riffuse)."""
        prompts = blend.between(self.prompts, other.prompts, w, Conditioning.lerp)
        guidance = self.guidance + w * (other.guidance - self.guidance)
        return Setting(prompts, guidance, self.strength + w * (other.strength - self.strength))

    @property
    def form(self) -> Hashable:
        """Return what must be alike for places to be denoised in one batch: guidance, and the prompts' parts."""
        guides = (*self.prompts.positive, self.prompts.negative)
        lengths = ([(until, conditioning.tokens.shape[1]) for until, conditioning in guide.stages] for guide in guides)
        return self.guidance, blend.weights(self.prompts), tuple(map(tuple, lengths))


@dataclass(frozen=True, eq=False)
class Way:
    """Hold what is told at each stop."""

    settings: tuple[Setting, ...]

    def at(self, place: float) -> Setting:
        """Return what is told at a place: 1.25 lies a quarter of the way from the second stop to the third."""
        begin = min(int(place), len(self.settings) - 1)
        if place == begin:
            return self.settings[begin]
        return self.settings[begin].between(self.settings[begin + 1], place - begin)


def encode_stops(system: StableDiffusion, stops: Sequence[Stop], shared: TextToImage) -> Way:
    """Encode the prompts of all stops."""
    return Way(tuple(_setting(system, stop, shared) for stop in stops))


def _setting(system: StableDiffusion, stop: Stop, shared: TextToImage) -> Setting:
    guidance, strength = stop.guidance or 0.0, stop.strength or 1.0
    asked = shared.replace(prompt=stop.prompt, negative=stop.negative or "", guidance=guidance)
    return Setting(conditioning.encode(system, asked), guidance, strength)


def denoiser(
    system: StableDiffusion, shared: TextToImage, sigmas: Sigmas, windows: Windows, settings: Sequence[Setting]
) -> Denoise:
    """Denoise `windows` together, each towards its own of the `settings`, at the noise levels `sigmas`.

    `shared` has the guidance of all.
    """

    @cache  # most windows are told what others are
    def of(*batch: Setting) -> Denoise:
        prompts = blend.stack_prompts([one.prompts for one in batch])
        return guided_denoiser(system, shared.replace(guidance=batch[0].guidance), prompts, sigmas)

    batches = list(_batches(settings))
    return multi_diffusion(by_rows([of(*batch) for batch in batches], [len(batch) for batch in batches]), windows)


def _batches(settings: Sequence[Setting]) -> Iterator[list[Setting]]:
    for _, alike in groupby(settings, key=lambda one: one.form):
        run = list(alike)
        yield from (run[start : start + BATCH] for start in range(0, len(run), BATCH))


@dataclass(frozen=True, eq=False)
class Given:
    """Hold the mel spectrogram of a given sound, how many samples it has at the model's rate, and the mask over it."""

    mel: Float[Tensor, "c mels frames"]
    samples: int
    mask: Float[Tensor, "1 mels frames"] | None = None


@dataclass(frozen=True, eq=False)
class Ground:
    """Hold what a plan's latents are drawn upon; masks are 1 where something new is drawn."""

    latents: Float[Tensor, "1 c h w"]
    greys: Float[Tensor, "3 mels columns"]
    mask: Float[Tensor, "1 mels columns"] | None = None

    def cells(self, factor: int) -> Float[Tensor, "1 1 h w"] | None:
        """Return the mask over the latents: one is drawn where any of its pixels is."""
        return None if self.mask is None else F.max_pool2d(self.mask[None], factor)

    def lay_back(self, drawn: Float[Tensor, "3 mels columns"]) -> Float[Tensor, "3 mels columns"]:
        """Lay what the mask keeps back over what was drawn."""
        return drawn if self.mask is None else torch.where(self.mask > 0, drawn, self.greys)


def read_given(music: Music, params: SpectrogramParams) -> Given | None:
    """Hear the sound of a request, or read the picture of its spectrogram, as the model hears.

    A picture that was made in another way is sounded and heard anew. Stereo is mixed down where the model is mono.
    Raises ReverieError for what cannot be read, and for a mask that is not as large as the spectrogram.
    """
    if music.init is None:
        return None
    source = music.init.open()
    if isinstance(source, Image.Image):
        mel, made = from_picture(source, params)
        if replace(made, columns=params.columns, stereo=params.stereo) == params:
            mel = mel.expand(2, -1, -1) if params.stereo else mel.mean(0, keepdim=True)
            return Given(mel, mel.shape[-1] * params.hop, _mask(music, mel.shape[-1], params.mels))
        source = Sound(sound_of_mel(mel, made), made.sample_rate)
    mel = mel_of_sound(source, params)
    return Given(mel, round(source.seconds * params.sample_rate), _mask(music, mel.shape[-1], params.mels))


def _mask(music: Music, frames: int, mels: int) -> Float[Tensor, "1 mels frames"] | None:
    if music.mask is None:
        return None
    mask = music.mask.image().convert("L")
    if mask.size != (frames, mels):
        raise ReverieError(
            f"the mask has {mask.width}x{mask.height} pixels and the sound's spectrogram {frames}x{mels}; make it as "
            "large (`reverie spectrogram` draws the sound's)"
        )
    return torch.from_numpy((np.asarray(mask) >= PAINTED).astype(np.float32))[None]


def lay_ground(given: Given, plan: MusicPlan, images: ImageCodec) -> Ground:
    """Encode a given sound for a plan: stretched around a loop, or with silence to its end; anew for every clip."""
    greys = plan.fit(to_greys(given.mel, plan.params), LIGHT)
    mask = None if given.mask is None else plan.fit(given.mask, 0)
    latents = encode_levels(images, greys)
    return Ground(
        plan.lay_out(latents),
        plan.lay_out(greys[None])[0].to(latents.device),
        None if mask is None else plan.lay_out((mask >= 0.5).float()[None])[0].to(latents.device),
    )
