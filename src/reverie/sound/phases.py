"""Phase reconstruction from mel spectrograms: phase gradients along peaks, then fast Griffin-Lim."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from reverie.sound.spectrogram import FULL_SCALE, Bands, SpectrogramParams, bands_of


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
        extended = samples[:, self._sample_indices(samples.device)]
        frames = extended.unfold(-1, self.window, self.hop) * torch.hann_window(self.window, device=samples.device)
        return torch.fft.rfft(frames, self.padded)

    def synthesise(self, spectrum: Complex[Tensor, "c frames bins"]) -> Float[Tensor, "c n"]:
        """Return the waveform whose spectra are nearest, in least squares (Griffin and Lim, 1984, eq. 6).

        Spectra of fewer bins than padded // 2 + 1 are those of a sound without what lies above.
        """
        window = torch.hann_window(self.window, device=spectrum.device)
        frames = torch.fft.irfft(spectrum, self.padded)[..., : self.window] * window
        weights = self._overlap_add((window**2).expand(1, self.count, -1))
        return self._overlap_add(frames) / weights.clamp(min=torch.finfo(weights.dtype).tiny)

    def sources(self, places: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
        """Return which sample is at a place, which may lie before the first or after the last."""
        period = max(1, 2 * (self.samples - 1))
        inside = places.remainder(period)
        return torch.minimum(inside, period - inside)

    def _sample_indices(self, device: torch.device) -> Int[Tensor, " p"]:
        """Return the samples from the beginning of the first frame to the end of the last."""
        reach = (self.count - 1) * self.hop + self.window
        return self.sources(torch.arange(reach, device=device) - self.window // 2)

    def _overlap_add(self, frames: Float[Tensor, "c frames window"]) -> Float[Tensor, "c n"]:
        """Add overlapping frames hop by hop, then what lies beyond the ends to the samples that it stands for."""
        hops = -(-self.window // self.hop)
        pieces = F.pad(frames, (0, hops * self.hop - self.window)).unflatten(-1, (hops, self.hop))
        laid = frames.new_zeros(len(frames), self.count + hops - 1, self.hop)
        for index in range(hops):
            laid[:, index : index + self.count] += pieces[:, :, index]
        covered = self._sample_indices(frames.device)
        return frames.new_zeros(len(frames), self.samples).index_add(1, covered, laid.flatten(1)[:, : len(covered)])


class Circle(Line):
    """Cut a waveform that begins again where it ends."""

    def sources(self, places: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
        """Return which sample is at a place, turn after turn."""
        return places.remainder(self.samples)


# The phase's derivatives are those of the log-magnitude under a Gaussian window (Prusa, Balazs and Sondergaard, "A
# noniterative method for reconstruction of phase from STFT magnitude", 2017); the Gaussian nearest to Hann's window.
HANN = 0.25645  # of the window's square
FLOOR = 1e-6  # of the loudest bin, below which nothing tells a phase


def estimate_phases(magnitudes: Float[Tensor, "c frames bins"], bands: Bands) -> Float[Tensor, "c frames bins"]:
    """Return phases in radians, as a transform that begins with its frame has them.

    The phase gradient is that of phase gradient heap integration; it is integrated frame by frame instead of in the
    order of a heap: a peak takes its phase from the frame before, a bin between peaks from the one on whose slope it
    lies (as a phase vocoder locks them, Laroche and Dolson, 1999). So all bins of a frame are done at once.
    """
    frames, bins = magnitudes.shape[-2:]
    rates, delays = gradients(magnitudes, bands)
    summits = summits_of(magnitudes)
    slopes = ((delays + delays.roll(1, -1)) / 2).cumsum(-1)
    slopes -= slopes.gather(-1, summits)
    steps = (rates + rates.roll(1, -2)) / 2
    phases = slopes.clone()
    for frame in range(1, frames):
        ahead = phases[:, frame - 1] + steps[:, frame]
        phases[:, frame] = (ahead.gather(-1, summits[:, frame]) + slopes[:, frame]).remainder(2 * math.pi)
    to_middle = math.pi * bands.window / bands.padded * torch.arange(bins, device=magnitudes.device)
    return phases - to_middle


def gradients(
    magnitudes: Float[Tensor, "c frames bins"], bands: Bands
) -> tuple[Float[Tensor, "c frames bins"], Float[Tensor, "c frames bins"]]:
    """Return how much the phase grows from frame to frame and from bin to bin, seen from the middle of each frame."""
    logs = (magnitudes + FLOOR * magnitudes.max()).clamp(min=torch.finfo(magnitudes.dtype).tiny).log()
    around = F.pad(logs, (1, 1, 1, 1), mode="replicate")
    over_time = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
    over_bins = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
    spread = HANN * bands.window**2 / bands.padded
    turns = torch.arange(magnitudes.shape[-1], device=logs.device) * bands.hop % bands.padded / bands.padded
    return over_bins * (bands.hop / spread) + 2 * math.pi * turns, over_time * (-spread / bands.hop)


def summits_of(magnitudes: Float[Tensor, "c frames bins"]) -> Int[Tensor, "c frames bins"]:
    """Return for each bin the peak that is reached from it by going upwards."""
    bins = torch.arange(magnitudes.shape[-1], device=magnitudes.device).expand(magnitudes.shape)
    rises = F.pad(magnitudes.diff(dim=-1) > 0, (1, 1))
    rises[..., 0], climbing = True, rises[..., 1:]
    peaks = rises[..., :-1] & ~climbing
    last = len(bins[0, 0]) - 1
    before = torch.where(peaks, bins, 0).cummax(-1).values
    after = last - torch.where(peaks, last - bins, 0).flip(-1).cummax(-1).values.flip(-1)
    return torch.where(climbing, after, before)


FITTING = 6  # steps towards the mel spectrogram before phases are suggested
ITERATIONS = 16
FAINT = 1e-9  # an amplitude that has no phase
MOMENTUM = 0.99  # Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm", 2013


@torch.no_grad()
def waveform(
    mel: Float[Tensor, "c mels frames"],
    params: SpectrogramParams,
    time: type[Line] = Line,
    iterations: int = ITERATIONS,
) -> Float[Tensor, "c n"]:
    """Return frames * hop samples whose mel amplitudes, at the scale of 16-bit samples, are near to `mel`.

    With a `time` that is a Circle the end goes on at the beginning. Each iteration is one of fast Griffin-Lim, but for
    the magnitudes that it keeps: not the same ones every time, but those just found, a step nearer to the bands, as
    only the bands are known (Masuyama et al., "Signal reconstruction from mel-spectrogram based on bi-level
    consistency", 2023). Channels begin with the same phases, so that what is in the middle stays there.
    """
    device = mel.device if mel.is_cuda else torch.device("cpu")  # sparse products are for these
    bands, mel = bands_of(params).to(device), mel.float().to(device)
    frames = time(bands.window, bands.hop, mel.shape[-1], bands.padded)
    magnitudes = mel.max().expand(len(mel), mel.shape[-1], bands.padded // 2 + 1)
    for _ in range(FITTING):
        magnitudes = bands.towards(mel, magnitudes)
    spectrum = torch.polar(magnitudes, estimate_phases(magnitudes.mean(0, keepdim=True), bands).expand_as(magnitudes))
    before = torch.zeros_like(spectrum)
    for _ in range(iterations):
        now = frames.analyse(frames.synthesise(spectrum))
        ahead = now.lerp(before, -MOMENTUM)
        spectrum = ahead * (bands.towards(mel, now.abs()) / ahead.abs().clamp(min=FAINT))
        before = now
    whole = time(params.window, params.hop, mel.shape[-1], bands.padded // bands.window * params.window)
    return whole.synthesise(spectrum * (params.window / bands.window)) / FULL_SCALE
