"""How is a waveform cut into windows and laid together again? Along a line, or around a circle for loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Line:
    """Cut `count` * `hop` samples into `count` frames of `window` samples, the first centred on the first sample.

    Beyond its ends the waveform is mirrored, as in spectrograms. Each frame is transformed with `padded` samples, zeros
    behind the window.
    """

    window: int
    hop: int
    count: int
    padded: int

    @property
    def samples(self) -> int:
        """Return how many samples the frames tell."""
        return self.count * self.hop

    def analyse(self, samples: Float[Tensor, "c n"]) -> Complex[Tensor, "c frames bins"]:
        """Return the spectrum of each frame under a Hann window."""
        extended = samples[:, self._covered(samples.device)]
        frames = extended.unfold(-1, self.window, self.hop) * torch.hann_window(self.window, device=samples.device)
        return torch.fft.rfft(frames, self.padded)

    def synthesise(self, spectrum: Complex[Tensor, "c frames bins"]) -> Float[Tensor, "c n"]:
        """Return the waveform whose spectra are nearest, in least squares (Griffin and Lim, 1984, eq. 6).

        Spectra of fewer bins than padded // 2 + 1 are those of a sound without what lies above.
        """
        window = torch.hann_window(self.window, device=spectrum.device)
        frames = torch.fft.irfft(spectrum, self.padded)[..., : self.window] * window
        weights = self._laid((window**2).expand(1, self.count, -1))
        return self._laid(frames) / weights.clamp(min=torch.finfo(weights.dtype).tiny)

    def sources(self, places: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
        """Return which sample is at a place, which may lie before the first or after the last."""
        period = max(1, 2 * (self.samples - 1))
        inside = places.remainder(period)
        return torch.minimum(inside, period - inside)

    def _covered(self, device: torch.device) -> Int[Tensor, " p"]:
        """Return the samples from the beginning of the first frame to the end of the last."""
        reach = (self.count - 1) * self.hop + self.window
        return self.sources(torch.arange(reach, device=device) - self.window // 2)

    def _laid(self, frames: Float[Tensor, "c frames window"]) -> Float[Tensor, "c n"]:
        """Add overlapping frames hop by hop, then what lies beyond the ends to the samples that it stands for."""
        hops = -(-self.window // self.hop)
        pieces = F.pad(frames, (0, hops * self.hop - self.window)).unflatten(-1, (hops, self.hop))
        laid = frames.new_zeros(len(frames), self.count + hops - 1, self.hop)
        for index in range(hops):
            laid[:, index : index + self.count] += pieces[:, :, index]
        covered = self._covered(frames.device)
        return frames.new_zeros(len(frames), self.samples).index_add(1, covered, laid.flatten(1)[:, : len(covered)])


class Circle(Line):
    """Cut a waveform that begins again where it ends."""

    def sources(self, places: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
        """Return which sample is at a place, turn after turn."""
        return places.remainder(self.samples)
