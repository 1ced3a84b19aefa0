"""Which magnitudes have these mel bands? Those of a transform no longer and a rate no higher than the bands need."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.sound.params import SpectrogramParams
from reverie.sound.spectrogram import mel_filters

FINEST = 2  # transforms in windows: twice the window tells all of a frame's magnitudes (its autocorrelation's length)
FLOOR = 1e-7  # of the loudest band: quieter ones are not divided by
STEEPEST = 10.0  # how much louder one step makes a bin


@dataclass(frozen=True, eq=False)
class Bands:
    """Say how the bins of short transforms make mel bands.

    A frame has `window` samples, `hop` apart, and is transformed with `padded`: numbers of samples at a rate that
    just holds the highest band, at which a transform's bins lie where those of the parameters' own rate do.
    """

    window: int
    hop: int
    padded: int
    filters: Float[Tensor, "mels bins"]  # sparse: a bin is in two or three bands
    spread: Float[Tensor, "bins mels"]  # their transpose, by which each bin's weights sum to 1; sparse too

    def to(self, device: torch.device) -> Bands:
        """Copy to a device."""
        return replace(self, filters=self.filters.to(device), spread=self.spread.to(device))

    def towards(
        self, mel: Float[Tensor, "c mels frames"], magnitudes: Float[Tensor, "c frames bins"]
    ) -> Float[Tensor, "c frames bins"]:
        """Return magnitudes whose bands are nearer to `mel`, by one multiplicative step.

        Lee and Seung, 2001, eq. 5: the divergence between the bands and `mel` falls with each step, nothing becomes
        negative, and of many solutions one like `magnitudes` is found.
        """
        floor = FLOOR * mel.max().clamp(min=torch.finfo(mel.dtype).tiny)
        wanted, now = mel.transpose(0, 1).flatten(1), torch.sparse.mm(self.filters, magnitudes.flatten(0, 1).T)
        ratios = (wanted / (now + floor)).clamp(max=STEEPEST)
        return magnitudes * torch.sparse.mm(self.spread, ratios).T.reshape(magnitudes.shape)


@lru_cache(maxsize=4)
def bands_of(params: SpectrogramParams) -> Bands:
    """Lay out the shortest transforms that give the parameters' bands.

    Riffusion pads 100 ms windows to 400 ms at 44,100 Hz: 17,640 samples. Nothing above 10 kHz counts, for which
    20,000 Hz suffice, and transforms of two windows hold all that longer ones do: 4,000 samples.
    """
    padding = min(FINEST, params.n_fft // params.window)
    part = params.window // math.gcd(params.window, params.hop)  # a window is so many equal parts, the hop some of them
    needed = 2 * math.ceil(params.high * params.window / params.sample_rate)
    window = min(params.window, -(-needed // part) * part)
    filters = _coarser(mel_filters(params), padding * params.window / params.n_fft)[: padding * window // 2 + 1]
    spread = filters / filters.sum(1, keepdim=True).clamp(min=torch.finfo(filters.dtype).tiny)
    to_own_rate = params.window / window  # as many times more samples are summed there
    hop = params.hop * window // params.window
    return Bands(window, hop, padding * window, (filters.T * to_own_rate).to_sparse(), spread.to_sparse())


def _coarser(filters: Float[Tensor, "bins mels"], step: float) -> Float[Tensor, "fewer mels"]:
    """Return the filters for bins so many times fewer, between which magnitudes are taken to go straight."""
    places = torch.arange(len(filters), dtype=torch.float64) * step
    below, rest = places.long(), places.frac().float()[:, None]
    fewer = filters.new_zeros(int(below[-1]) + 2, filters.shape[1])
    return fewer.index_add(0, below, filters * (1 - rest)).index_add(0, below + 1, filters * rest)
