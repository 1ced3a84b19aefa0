"""Training sounds: composed music, or a collection; each as the picture of its spectrogram."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from reverie.codecs.spectrograms import hear, to_picture
from reverie.corpora.captions import telling
from reverie.corpora.music.captions import caption
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.fluidsynth import default_font
from reverie.corpora.music.synth import render
from reverie.data.sounds import CaptionedSounds
from reverie.media.sound import Sound
from reverie.sound.spectrogram import SpectrogramParams
from reverie.train.examples import Identity

SAMPLED = 20  # clips whose notes tell whether music is still composed as before


@dataclass(frozen=True)
class ComposedMusic:
    """Serve `count` clips of composed music, as pictures of their spectrograms."""

    seed: int
    count: int
    params: SpectrogramParams

    def __len__(self) -> int:
        return self.count

    @property
    def identity(self) -> Identity:
        """Return what the spectrograms depend on: also how music is composed, by a sample, and on what it is played."""
        digest = hashlib.sha256(self.picture(0).tobytes())
        for index in range(min(SAMPLED, self.count)):
            digest.update(repr(clip_at(self.seed, index)).encode())
        return ["music", default_font().name, self.seed, self.count, asdict(self.params), digest.hexdigest()]

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Compose, play and draw a clip."""
        samples = render(clip_at(self.seed, index), self.params.sample_rate, self.params.seconds)
        return draw_spectrogram(Sound(torch.from_numpy(samples), self.params.sample_rate), self.params)

    def caption(self, index: int, turn: int) -> str:
        """Tell a clip in English or Chinese."""
        return caption(clip_at(self.seed, index), telling(self.seed, index, turn))


@dataclass(frozen=True)
class Sounds:
    """Serve the clips of a collection of sounds, as pictures of their spectrograms."""

    found: CaptionedSounds[Sound]
    params: SpectrogramParams

    def __len__(self) -> int:
        return len(self.found)

    @property
    def identity(self) -> Identity:
        """Return which files there are, and what the spectrograms depend on."""
        return ["sounds", asdict(self.params), *self.found.identity]

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read and draw a clip. Raises ReverieError, naming it, where it is damaged."""
        return draw_spectrogram(self.found.sound(index), self.params)

    def caption(self, index: int, turn: int) -> str:
        """Return its one caption."""
        return self.found.caption(index)


def draw_spectrogram(sound: Sound, params: SpectrogramParams) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the spectrogram of a clip, as wide as `params` say: cut, or filled up with silence."""
    mel = hear(sound, params)
    return np.array(to_picture(F.pad(mel, (0, params.columns - mel.shape[-1])), params))
