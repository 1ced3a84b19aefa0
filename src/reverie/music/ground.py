"""What does music start from, and what of it stays? A sound's spectrogram, fitted to the plan, under its mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs.image import ImageCodec
from reverie.codecs.spectrograms import LIGHT, from_picture, to_greys
from reverie.errors import ReverieError
from reverie.media.masks import PAINTED
from reverie.media.sound import Sound
from reverie.music.plan import Plan
from reverie.music.sections import encoded, heard, sounded
from reverie.requests.music import Music
from reverie.sound.params import SpectrogramParams


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

    def kept(self, drawn: Float[Tensor, "3 mels columns"]) -> Float[Tensor, "3 mels columns"]:
        """Lay what the mask keeps back over what was drawn."""
        return drawn if self.mask is None else torch.where(self.mask > 0, drawn, self.greys)


def given(music: Music, params: SpectrogramParams) -> Given | None:
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
        source = Sound(sounded(mel, made), made.sample_rate)
    mel = heard(source, params)
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


def laid(given: Given, plan: Plan, images: ImageCodec) -> Ground:
    """Encode a given sound for a plan: stretched around a loop, or with silence to its end; anew for every clip."""
    greys = plan.fitted(to_greys(given.mel, plan.params), LIGHT)
    mask = None if given.mask is None else plan.fitted(given.mask, 0)
    latents = encoded(images, greys)
    return Ground(
        plan.laid_out(latents),
        plan.laid_out(greys[None])[0].to(latents.device),
        None if mask is None else plan.laid_out((mask >= 0.5).float()[None])[0].to(latents.device),
    )
