"""How is a waveform cut into windows and laid together again? Along a line, or around a circle for loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

FAINT = 1e-6  # of a window's square: below it, at a line's ends, a sample is not known


@dataclass(frozen=True)
class Line:
    """Cut time into `count` frames of `window` samples, `hop` apart, from the first frame's begin to the last's end.

    Each is transformed with `padded` samples, zeros behind the window.
    """

    window: int
    hop: int
    count: int
    padded: int

    @property
    def reach(self) -> int:
        """Return the samples from the beginning of the first frame to the end of the last."""
        return (self.count - 1) * self.hop + self.window

    def analyse(self, samples: Float[Tensor, "c n"]) -> Complex[Tensor, "c frames bins"]:
        """Return the spectrum of each frame under a Hann window."""
        frames = samples.unfold(-1, self.window, self.hop) * torch.hann_window(self.window, device=samples.device)
        return torch.fft.rfft(frames, self.padded)

    def synthesise(self, spectrum: Complex[Tensor, "c frames bins"]) -> Float[Tensor, "c n"]:
        """Return the waveform whose spectra are nearest, in least squares (Griffin and Lim, 1984, eq. 6).

        Spectra of fewer bins than padded // 2 + 1 are those of a sound without what lies above.
        """
        window = torch.hann_window(self.window, device=spectrum.device)
        frames = torch.fft.irfft(spectrum, self.padded)[..., : self.window] * window
        weights = self._laid((window**2).expand(1, self.count, -1))
        return self._laid(frames) / weights.clamp(min=FAINT)

    def centred(self, samples: Float[Tensor, "c n"]) -> Float[Tensor, "c m"]:
        """Return count * hop samples from the middle of the first frame on."""
        return samples[:, self.window // 2 :][:, : self.count * self.hop]

    def _laid(self, frames: Float[Tensor, "c frames window"]) -> Float[Tensor, "c n"]:
        """Add overlapping frames, hop by hop."""
        hops = -(-self.window // self.hop)
        pieces = F.pad(frames, (0, hops * self.hop - self.window)).unflatten(-1, (hops, self.hop))
        laid = frames.new_zeros(len(frames), self.count + hops - 1, self.hop)
        for index in range(hops):
            laid[:, index : index + self.count] += pieces[:, :, index]
        return laid.flatten(1)[:, : self.reach]


class Circle(Line):
    """Cut a time that begins again where it ends: `count` * `hop` samples, in which the last frames wrap around."""

    def analyse(self, samples: Float[Tensor, "c n"]) -> Complex[Tensor, "c frames bins"]:
        """Return the spectrum of each frame; those at the end go on at the beginning."""
        turns = -(-self.reach // samples.shape[1])
        return super().analyse(samples.repeat(1, turns)[:, : self.reach])

    def centred(self, samples: Float[Tensor, "c n"]) -> Float[Tensor, "c m"]:
        """Return the samples from the middle of the first frame on, all around."""
        return samples.roll(-(self.window // 2), -1)

    def _laid(self, frames: Float[Tensor, "c frames window"]) -> Float[Tensor, "c n"]:
        length = self.count * self.hop
        turns = -(-self.reach // length)
        return F.pad(super()._laid(frames), (0, turns * length - self.reach)).unflatten(1, (turns, length)).sum(1)
