"""Long sounds heard, coded and sounded in bounded memory, in cross-faded sections; the `Recording` that results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.codecs.image import ImageCodec
from reverie.codecs.spectrograms import LIGHT, convert_sound
from reverie.media import pictures, sound
from reverie.media.sound import Sound
from reverie.progress import Progress
from reverie.requests import records
from reverie.requests.music import Music
from reverie.sound.spectrogram import PER_SECOND, Line, SpectrogramParams, spectrogram, waveform

NUMBERS = 1 << 25  # of a spectrum at once: 256 MB; 21 minutes of the bundled model, 38 s of Riffusion
PIXELS = 1 << 20  # that pass the autoencoder at once: 164 s of the bundled model, 20 s of Riffusion
CONTEXT = 16  # latents over which coded sections are faded: as far as the decoder's convolutions see

Fade = Callable[[Tensor], Tensor]
"""Rising from 0 to 1 over a fade, the weight of what comes; what goes has that of the fade reversed."""


@dataclass(frozen=True, eq=False)
class Section(Progress):
    """What the latest section finished; all pieces in a row are the whole."""

    x: Tensor


def pieces(
    run: Callable[[Tensor], Tensor], x: Tensor, section: int, overlap: int, fade: Fade = lambda part: part
) -> Iterator[Section]:
    """Apply `run`, which keeps the last axis or stretches it, to sections of `x`, and fade these into one another.

    `section` and `overlap` count along the last axis of `x`.

    What is no longer than a section is run as it is. The fade keeps the sum of what is alike on both sides of it.
    """
    begins = range(section - overlap, x.shape[-1] - overlap, section - overlap) if x.shape[-1] > section else ()
    total, held = 1 + len(begins), run(x[..., :section])
    count = overlap * held.shape[-1] // section
    rising = fade((torch.arange(count, device=held.device) + 0.5) / count)
    for done, begin in enumerate(begins, start=1):
        following = run(x[..., begin : begin + section])
        both = held[..., -count:] * rising.flip(0) + following[..., :count] * rising
        yield Section(done, total, "sections", torch.cat([held[..., :-count], both], dim=-1))
        held = following[..., count:]
    yield Section(total, total, "sections", held)


def in_sections(
    run: Callable[[Tensor], Tensor], x: Tensor, section: int, overlap: int, fade: Fade = lambda part: part
) -> Tensor:
    """Return all pieces in a row; see `pieces`."""
    return torch.cat([piece.x for piece in pieces(run, x, section, overlap, fade)], dim=-1)


def mel_of_sound(sound: Sound, params: SpectrogramParams) -> Float[Tensor, "c mels frames"]:
    """Return the mel spectrogram of a sound, converted to the parameters' rate and channels."""
    samples = convert_sound(sound, params).samples
    frames = _frames_at_once(params)
    section, overlap = frames * params.hop, _second(params) * params.hop
    return in_sections(lambda part: spectrogram(part, params), samples, section, overlap)


def encode_levels(images: ImageCodec, greys: Float[Tensor, "3 mels columns"]) -> Float[Tensor, "1 c h w"]:
    """Encode the levels of whole latents to scaled latents."""
    section = _latents_at_once(images, greys.shape[1]) * images.factor
    return in_sections(images.encode_tensor, greys[None] / (LIGHT / 2) - 1, section, CONTEXT * images.factor)


def decode_levels(images: ImageCodec, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "3 mels columns"]:
    """Decode scaled latents to levels from 0 to 255."""
    section = _latents_at_once(images, latents.shape[2] * images.factor)
    return (in_sections(images.decode, latents, section, CONTEXT)[0] + 1) * (LIGHT / 2)


def sound_of_mel(
    mel: Float[Tensor, "c mels frames"], params: SpectrogramParams, time: type[Line] = Line
) -> Float[Tensor, "c n"]:
    """Return a waveform of frames * hop samples."""
    return torch.cat([piece.x for piece in sounding(mel, params, time)], dim=-1)


def sounding(
    mel: Float[Tensor, "c mels frames"], params: SpectrogramParams, time: type[Line] = Line
) -> Iterator[Section]:
    """Yield a waveform piece by piece; sections have phases of their own, so their powers are faded."""
    if time is not Line:  # a circle has no sections
        return iter([Section(1, 1, "sections", waveform(mel, params, time))])
    section, overlap = _frames_at_once(params), _second(params)
    return pieces(lambda part: waveform(part, params), mel, section, overlap, torch.sqrt)


def _second(params: SpectrogramParams) -> int:
    return math.ceil(PER_SECOND / params.step_ms)


def _frames_at_once(params: SpectrogramParams) -> int:
    return max(NUMBERS // (params.n_fft // 2 + 1), 4 * _second(params))


def _latents_at_once(images: ImageCodec, height: int) -> int:
    """Return how many latents pass at once: no fewer than the codec takes whole, which for a loop is all of it."""
    return max(max(PIXELS, images.whole) // height // images.factor, 4 * CONTEXT)


@dataclass(frozen=True, eq=False, repr=False)
class Recording(Sound):
    """Hold a clip: a `Sound`, the picture of the spectrogram it came from, its request alone and the model's name."""

    picture: Image.Image
    request: Music
    model: str

    @property
    def texts(self) -> dict[str, str]:
        """Return the tags that its file carries."""
        return records.texts(self.request, self.model)

    def save(self, path: str | Path, *, metadata: bool = True) -> None:
        """Write the sound (.wav, .flac, .ogg, .mp3) or the picture of its spectrogram, with its request inside.

        Without `metadata` the file says nothing of the request; a picture still says how it becomes sound.
        """
        if Path(path).suffix.lower() in pictures.FORMATS:
            picture = self.picture.copy()
            if not records:
                picture.info.pop(pictures.REQUEST, None)
            pictures.save(picture, path)
        else:
            sound.write(self, path, texts=self.texts if records else {})
