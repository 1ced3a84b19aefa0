"""Convolutional classifiers: of pictures (`PlainNet`, `ResidualNet`) and of sounds (`Listener`).

`PlainNet` (stacked convolutions, as VGG) gives the perceptual distance its features where VGG's own weights are
missing; `ResidualNet` (as ResNet) is the judge of generated pictures. They share no weights, data seeds or shape. The
listener is the judge of generated music: leading instrument, tempo, drums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassifierConfig:
    """Describe a classifier: its make, the classes, and the width of each stage, each at half the last one's size."""

    make: str  # a key of CLASSIFIERS
    classes: int
    widths: tuple[int, ...] = (16, 32, 64, 128)


class PlainNet(nn.Module):
    """Stack two 3x3 convolutions a stage with max pooling between (Simonyan and Zisserman 2014), batch-normalised."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (3, *config.widths)
        self.stages = nn.ModuleList(
            nn.Sequential(*_convolution(a, b), *_convolution(b, b)) for a, b in zip(inputs, config.widths, strict=False)
        )
        self.head = nn.Linear(config.widths[-1], config.classes)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return every stage's map, taken before the pooling; images in [-1, 1]."""
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
            x = F.max_pool2d(x, 2)
        return maps

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return the logits of images in [-1, 1]: the strongest answer anywhere in the picture."""
        return self.head(self.features(images)[-1].amax((2, 3)))


class ResidualNet(nn.Module):
    """Halve the picture, then pass residual blocks that each halve it again (He et al. 2015), batch-normalised."""

    def __init__(self, config: ClassifierConfig, channels: int = 3) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(*_convolution(channels, config.widths[0], kernel=5, stride=2))
        inputs = (config.widths[0], *config.widths)
        self.blocks = nn.ModuleList(ResidualStage(a, b) for a, b in zip(inputs, config.widths, strict=False))
        self.head = nn.Linear(2 * config.widths[-1], config.classes)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Return the logits of images in [-1, 1]."""
        x = self.stem(F.avg_pool2d(images, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))


class ResidualStage(nn.Module):
    """Halve a map and add what two convolutions make of it to a projection of the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(inputs, outputs, stride=2),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Return the map at half the size."""
        return F.relu(self.body(x) + self.skip(F.avg_pool2d(x, 2, ceil_mode=True)))


CLASSIFIERS: dict[str, type[PlainNet] | type[ResidualNet]] = {"plain": PlainNet, "residual": ResidualNet}


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Sequence[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


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
