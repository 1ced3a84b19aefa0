"""A tiny model of music, of random weights: clips of 0.32 s at 8 kHz, in pictures of 32 x 32 pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reverie.pipeline import Pipeline
from reverie.sound.params import SpectrogramParams


@pytest.fixture(scope="session")
def hearing() -> SpectrogramParams:
    return SpectrogramParams(sample_rate=8_000, step_ms=10, window_ms=32, padded_ms=32, mels=32, high=4_000, columns=32)


@pytest.fixture(scope="session")
def player(tiny: Pipeline, hearing: SpectrogramParams) -> Pipeline:
    """Give the tiny system as a model of music; tests must not change it."""
    return replace(tiny, spectrogram=hearing)
