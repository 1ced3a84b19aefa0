"""The plan of a piece of music in time: samples, columns, latents, windows, and loops of exact length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.windows import Windows, circle, line
from reverie.errors import ReverieError
from reverie.music.sections import sound_of_mel
from reverie.requests.music import MINUTE, Music
from reverie.sound.spectrogram import Circle, Line, SpectrogramParams


def stretch_circle(x: Float[Tensor, "... columns"], columns: int) -> Float[Tensor, "... wanted"]:
    """Interpolate linearly to another number of columns, the last going on to the first."""
    old = x.shape[-1]
    if old == columns:
        return x
    places = torch.arange(columns, device=x.device, dtype=torch.float64) * (old / columns)
    left = places.long()
    return torch.lerp(x[..., left], x[..., (left + 1) % old], (places - left).to(x.dtype))


def resample_circle(samples: Float[Tensor, "c n"], count: int) -> Float[Tensor, "c wanted"]:
    """Bring one period of a periodic sound to another number of samples, through its Fourier series.

    What lies above the new Nyquist frequency is left out; nothing else changes.
    """
    old = samples.shape[-1]
    if old == count:
        return samples
    spectrum = torch.fft.rfft(samples)[..., : (min(old, count) + 1) // 2]
    return torch.fft.irfft(spectrum, count) * (count / old)


WIDTH = 0.6  # of the side beside the middle: wide, and still in front
SPREAD = 0.01  # seconds before and after over which the side is spread: too short to be heard as an echo
SEED = 0  # of the side's phases: the same for every sound


def widen_stereo(samples: Float[Tensor, "1 n"], rate: int) -> Float[Tensor, "2 n"]:
    """Return left = middle + side and right = middle - side, whose mean is the sound itself.

    The side is the sound through a filter that turns every frequency by a quarter, some one way and some the other.
    So left and right are equally loud at every frequency, and differ by their phases alone (Schroeder 1958, "An
    Artificial Stereophonic Effect Obtained from a Single Audio Signal"). It is filtered around the circle: a loop stays
    one.
    """
    side = WIDTH * _filter_circle(samples, _odd_noise(rate))
    return torch.cat([samples + side, samples - side])


def _odd_noise(rate: int) -> Float[Tensor, " taps"]:
    """Return a noise that is its own negative backwards: its spectrum is imaginary. Its energy is 1."""
    taps = max(2, math.ceil(SPREAD * rate))
    noise = torch.randn(taps, generator=torch.Generator("cpu").manual_seed(SEED))
    half = noise * torch.exp(-3 * torch.arange(taps) / taps)
    odd = torch.cat([-half.flip(0), torch.zeros(1), half])
    return odd / odd.norm()


def _filter_circle(samples: Float[Tensor, "1 n"], taps: Float[Tensor, " taps"]) -> Float[Tensor, "1 n"]:
    """Convolve around the circle with taps whose middle stands at the present."""
    n = samples.shape[-1]
    turns = math.ceil(len(taps) / n)
    around = torch.nn.functional.pad(taps, (0, turns * n - len(taps))).view(turns, n).sum(0).roll(-(len(taps) // 2))
    return torch.fft.irfft(torch.fft.rfft(samples) * torch.fft.rfft(around.to(samples.device)), n)


STRIDE = 2 / 3  # of a window, at most, from one on a bar to the next


@dataclass(frozen=True)
class MusicPlan:
    """Lay out `clips` clips of `samples` samples each, one after the other without a gap, as one row of latents.

    A latent spans `factor` columns of the spectrogram, and the network was trained on `width` latents. `tempo` is the
    latents of a beat and the beats of a bar, where they are known: the network, whose clips begin with a bar, hears one
    begin in each of its windows, so that they are laid on bars, or at least on beats.
    """

    params: SpectrogramParams
    factor: int
    width: int
    samples: int
    clips: int
    tempo: tuple[float, int] | None = None

    axes: ClassVar[str] = ""
    """Along which pictures of the spectrogram have no edge."""

    @property
    def total(self) -> int:
        """Return the samples of all clips."""
        return self.clips * self.samples

    @property
    def columns(self) -> int:
        """Return the columns that are sounded, of which the last may reach beyond the end."""
        return math.ceil(self.total / self.params.hop)

    @property
    def length(self) -> int:
        """Return the latents that are drawn: a window at least, and all of the last."""
        more = max(0, math.ceil(self.columns / self.factor) - self.width)
        if self.tempo is None:
            return self.width + more
        return self.width + round(math.ceil(more / self.stride) * self.stride)

    @property
    def stride(self) -> float:
        """Return how many latents lie between two windows: half of one, or whole bars or beats."""
        if self.tempo is None:
            return self.width / 2
        beat, beats = self.tempo
        bars, single = int(STRIDE * self.width / beat / beats), int(STRIDE * self.width / beat)
        return beat * (bars * beats or single)

    @property
    def windows(self) -> Windows:
        """Return where the network's windows lie."""
        return line(self.length, self.width, self.stride if self.tempo else None)

    @property
    def clip(self) -> float:
        """Return the latents of one clip, which need not be whole."""
        return self.samples / self.params.hop / self.factor

    @property
    def clip_length(self) -> int:
        """Return the latents that one clip is drawn from: noise or a sound, which each clip begins anew."""
        return self.length if self.clips == 1 else math.ceil(self.clip)

    def lay_out(self, clips: Float[Tensor, "clips *c w"]) -> Float[Tensor, "1 *c length"]:
        """Lay clips of `clip_length` latents, or the same one for all, or columns of these, one after the other.

        A clip begins on the latent nearest to its time; what is drawn beyond the end goes on with its beginning.
        """
        each = clips.shape[-1] // self.clip_length
        latents = torch.arange(self.length)
        number = ((latents + 0.5) / self.clip).long().clamp(max=self.clips - 1) if self.clips > 1 else 0 * latents
        begins = (number * self.clip - 0.5).ceil().long()
        within = (latents - begins) % self.clip_length
        columns = (within[:, None] * each + torch.arange(each)).flatten()
        rows = clips.movedim(-1, 1)[number.clamp(max=len(clips) - 1).repeat_interleave(each), columns]
        return rows.movedim(0, -1)[None]

    def part(self, latent: float) -> float:
        """Return how far from 0 to 1 the way is gone at a latent: in the middle of clip k of n, k / (n - 1)."""
        if self.clips == 1:
            return 0.0
        return min(1.0, max(0.0, (latent / self.clip - 0.5) / (self.clips - 1)))

    def fit(self, x: Float[Tensor, "c mels frames"], beyond: float) -> Float[Tensor, "c mels columns"]:
        """Bring a given sound's frames to the columns of one clip's latents; `beyond` is what follows its end."""
        columns = self.clip_length * self.factor
        return F.pad(x[..., :columns], (0, max(0, columns - x.shape[-1])), value=beyond)

    def sounded_columns(self, drawn: Float[Tensor, "c mels columns"]) -> Float[Tensor, "c mels frames"]:
        """Return the columns that are sounded of those that were drawn."""
        return drawn[..., : self.columns]

    def to_sound(self, mel: Float[Tensor, "c mels frames"]) -> Float[Tensor, "c total"]:
        """Give a spectrogram its phases, to the sample as long as asked."""
        return sound_of_mel(mel, self.params, Line)[:, : self.total]

    def to_stereo(self, samples: Float[Tensor, "1 total"]) -> Float[Tensor, "2 total"]:
        """Let a sound come from two sides, silence before and after it."""
        rate = self.params.sample_rate
        return widen_stereo(F.pad(samples, (0, rate)), rate)[:, : self.total]


class Loop(MusicPlan):
    """Lay out music whose end leads into its beginning.

    It is drawn on the nearest number of whole latents, of which a window sees it repeated where it is shorter, and
    stretched around the circle to its exact length: the spectrogram to whole columns, the waveform to whole samples.
    """

    axes = "x"

    @property
    def columns(self) -> int:
        """Return the columns that are sounded."""
        return max(1, round(self.total / self.params.hop))

    @property
    def length(self) -> int:
        """Return the latents that are drawn."""
        return max(1, round(self.columns / self.factor))

    @property
    def stride(self) -> float:
        """Return how many latents lie between two windows; on bars, all the way around."""
        if self.tempo is None or not (beats := round(self.clip / self.tempo[0])):
            return self.width / 2
        each = self.length / beats
        counts = [count for count in range(1, beats + 1) if beats % count == 0 and each * count <= STRIDE * self.width]
        bars = [count for count in counts if count % self.tempo[1] == 0]
        return each * max(bars or counts) if counts else self.width / 2

    @property
    def windows(self) -> Windows:
        """Return where the network's windows lie."""
        return circle(self.length, self.width, self.stride)

    def fit(self, x: Float[Tensor, "c mels frames"], beyond: float) -> Float[Tensor, "c mels columns"]:
        """Stretch a given sound's frames to the columns of the latents; nothing is beyond."""
        return stretch_circle(x, self.length * self.factor)

    def sounded_columns(self, drawn: Float[Tensor, "c mels columns"]) -> Float[Tensor, "c mels frames"]:
        """Stretch what was drawn to the columns that are sounded."""
        return stretch_circle(drawn, self.columns)

    def to_sound(self, mel: Float[Tensor, "c mels frames"]) -> Float[Tensor, "c total"]:
        """Give a spectrogram phases that go on around the circle."""
        return resample_circle(sound_of_mel(mel, self.params, Circle), self.total)

    def to_stereo(self, samples: Float[Tensor, "1 total"]) -> Float[Tensor, "2 total"]:
        """Let a sound come from two sides."""
        return widen_stereo(samples, self.params.sample_rate)


def plan(music: Music, params: SpectrogramParams, factor: int, given: int | None = None) -> MusicPlan:
    """Lay out a request for a model that hears by `params` and whose latents span `factor` columns and bands.

    `given` are the samples of the sound that it starts from, at the model's rate.

    Raises ReverieError for parameters that are no whole latents.
    """
    for name, count in (("bands", params.mels), ("columns", params.columns)):
        if count % factor:
            raise ReverieError(
                f"spectrograms of {count} {name} are no whole latents of {factor}; this model has others"
            )
    samples = given if given is not None else round(music.lasting(params.seconds) * params.sample_rate)
    width, tempo = params.columns // factor, None
    if music.tempo is not None and given is None:  # nothing is known of where a given sound's bars begin
        beat = MINUTE / music.tempo * params.sample_rate / params.hop / factor
        tempo = (beat, music.beats) if beat <= STRIDE * width else None
    kind = Loop if music.loop else MusicPlan
    return kind(params, factor, width, max(1, samples), music.walk or 1, tempo)
