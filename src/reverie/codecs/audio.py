"""How does sound become the latents that a U-Net sees, and back? As the picture of its spectrogram."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs.image import ImageCodec, to_pictures
from reverie.codecs.spectrograms import LIGHT, from_greys, tagged, to_greys
from reverie.media.sound import Sound
from reverie.sound.frames import Line
from reverie.sound.params import SpectrogramParams
from reverie.sound.phases import waveform
from reverie.sound.spectrogram import spectrogram


@dataclass(frozen=True, eq=False)
class AudioCodec:
    """Encode sounds to scaled latents and decode scaled latents to sounds, through an image codec."""

    images: ImageCodec
    params: SpectrogramParams

    def latent_shape(self, columns: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of so many columns; raise ReverieError where not whole."""
        return self.images.latent_shape(columns, self.params.mels)

    @torch.no_grad()
    def encode(self, sound: Sound) -> Float[Tensor, "1 c h w"]:
        """Encode a sound, converted to the parameters' rate and channels, to float32 latents of about unit variance.

        What does not fill a last latent's columns is padded with silence.
        """
        mel = hear(sound, self.params)
        missing = -mel.shape[-1] % self.images.factor
        mel = torch.nn.functional.pad(mel, (0, missing))
        return self.images.encode_tensor(to_greys(mel, self.params)[None] / (LIGHT / 2) - 1)

    @torch.no_grad()
    def sounds(self, latents: Float[Tensor, "b c h w"], time: type[Line] = Line) -> list[Sound]:
        """Decode scaled latents to sounds of columns * hop samples, each normalised to -1 dBFS.

        With `time` Circle (sound/frames.py) the end of each goes on at its beginning.
        """
        greys = (self.images.decode(latents) + 1) * (LIGHT / 2)
        mels = [from_greys(one, self.params) for one in greys]
        return [Sound(waveform(mel, self.params, time), self.params.sample_rate).normalised() for mel in mels]

    @torch.no_grad()
    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Decode scaled latents to pictures of spectrograms, with the EXIF tags that tell how they sound."""
        return [tagged(picture, self.params) for picture in to_pictures(self.images.decode(latents))]


def hear(sound: Sound, params: SpectrogramParams) -> Float[Tensor, "c mels frames"]:
    """Return the mel spectrogram of a sound, converted to the parameters' rate and channels."""
    return spectrogram(suited(sound, params).samples, params)


def suited(sound: Sound, params: SpectrogramParams) -> Sound:
    """Convert a sound to the parameters' rate and channels."""
    return (sound.stereo() if params.stereo else sound.mono()).resampled(params.sample_rate)
