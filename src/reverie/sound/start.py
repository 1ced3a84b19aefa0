"""Which phases do magnitudes suggest? Those of peaks that go on in time, and of their neighbours along frequency."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reverie.sound.bands import Bands

# The phase's derivatives are those of the log-magnitude under a Gaussian window (Prusa, Balazs and Sondergaard, "A
# noniterative method for reconstruction of phase from STFT magnitude", 2017); the Gaussian nearest to Hann's window.
HANN = 0.25645  # of the window's square
FLOOR = 1e-6  # of the loudest bin, below which nothing tells a phase


def suggested(magnitudes: Float[Tensor, "c frames bins"], bands: Bands) -> Float[Tensor, "c frames bins"]:
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
