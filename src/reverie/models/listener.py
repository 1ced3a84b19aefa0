"""Which instrument leads in a sound, how fast does it go, are there drums? The judge of generated music.

It hears waveforms through a spectrogram of its own, coarser in pitch and finer in time than the one that the generator
draws, and shares nothing with any part of the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reverie.models.classifier import ClassifierConfig, ResidualNet

FLOOR = 1e-4  # of the loudest band: 80 dB below it is silence
SHORTEST, LONGEST = 0.15, 2.0  # seconds between two beats that are looked at


@dataclass(frozen=True)
class ListenerConfig:
    """Describe a listener: the classes it tells apart and what it is given."""

    instruments: int
    tempos: int
    bands: int = 64
    columns_per_second: float = 62.5
    groups: int = 8  # of bands, in each of which the pulse is looked for
    widths: tuple[int, ...] = (24, 48, 96, 160)
    pulse_width: int = 96


class Heard(NamedTuple):
    """Hold the logits of the leading instrument, of the tempo and of drums."""

    instrument: Float[Tensor, "b i"]
    tempo: Float[Tensor, "b t"]
    drums: Float[Tensor, " b"]


class Listener(nn.Module):
    """Hear timbre by residual convolutions over the spectrogram, the tempo by the autocorrelation of its onsets."""

    def __init__(self, config: ListenerConfig) -> None:
        super().__init__()
        self.config = config
        self.timbre = ResidualNet(ClassifierConfig("residual", config.instruments + 1, config.widths), channels=1)
        self.lags = slice(*(round(seconds * config.columns_per_second) for seconds in (SHORTEST, LONGEST)))
        lags = config.groups * (self.lags.stop - self.lags.start)
        self.pulse = nn.Sequential(
            nn.Linear(lags, config.pulse_width), nn.GELU(), nn.Linear(config.pulse_width, config.tempos)
        )

    def forward(self, mel: Float[Tensor, "b bands columns"]) -> Heard:
        """Judge mel amplitudes of any loudness."""
        level = loudness(mel)
        timbre = self.timbre(level[:, None])
        pulse = self.pulse(rhythm(level, self.config.groups)[..., self.lags].flatten(1))
        return Heard(timbre[:, :-1], pulse, timbre[:, -1])


def loudness(mel: Float[Tensor, "b bands columns"]) -> Float[Tensor, "b bands columns"]:
    """Return levels in [-1, 1] on a logarithmic scale, 1 for the loudest of each clip."""
    loudest = mel.amax((1, 2), keepdim=True).clamp(min=torch.finfo(mel.dtype).tiny)
    return 1 - 2 * (mel / loudest).clamp(min=FLOOR).log10() / torch.tensor(FLOOR).log10()


def rhythm(level: Float[Tensor, "b bands columns"], groups: int) -> Float[Tensor, "b groups columns"]:
    """Return how alike the onsets are to themselves later on, by lag in columns; 1 at lag 0.

    Onsets are the rises of the level (spectral flux), summed over each group of neighbouring bands; their
    autocorrelation is that of a sequence followed by silence, by Wiener and Khinchin's theorem.
    """
    rises = F.relu(level.diff(dim=-1, prepend=level[..., :1]))
    onsets = rises.unflatten(1, (groups, -1)).mean(2)
    onsets = onsets - onsets.mean(-1, keepdim=True)
    columns = onsets.shape[-1]
    power = torch.fft.rfft(onsets, 2 * columns).abs().square()
    alike = torch.fft.irfft(power, 2 * columns)[..., :columns]
    return alike / alike[..., :1].clamp(min=1e-8)
