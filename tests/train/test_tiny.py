"""Does a tiny autoencoder learn to draw scenes from latents, and to give them?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reverie.corpora.concepts import Concept
from reverie.models.autoencoder import TinyAutoencoder, TinyConfig
from reverie.train import enlarge, examples
from reverie.train.enlarge import DecoderSettings
from reverie.train.examples import Scenes
from reverie.train.loop import Learner, RunSettings
from reverie.train.tiny import HALVES, TinyObjective, initialise_

THINGS = (Concept("🐻", "animal-mammal", ("bear",), ("熊",)), Concept("🍎", "food-fruit", ("apple",), ("苹果",)))
SHAPE = TinyConfig(
    encoder_width=8, decoder_width=8, num_encoder_blocks=(0, 0, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 0, 0)
)


def test_both_halves_learn_and_features_count_from_their_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarge, "perceptual_features", lambda: lambda x: [F.avg_pool2d(x, 4)])
    monkeypatch.setattr(examples, "drawing", lambda emoji, size: np.zeros((size, size, 4), np.float32))
    torch.manual_seed(0)
    tiny, latents = TinyAutoencoder(SHAPE), torch.randn(2, 2, 4, 16, 16)
    initialise_(tiny)
    settings = DecoderSettings(base="", crop=4, batch=2, perceptual_start=5)
    objective = TinyObjective(tiny, HALVES, Scenes(THINGS, 0, 2, scatter=0, scale=2), latents, settings, 0)
    learner = Learner(objective, RunSettings(steps=20, lr=1e-2, warmup=5))
    told = [dict(learner.step(step)) for step in range(20)]
    assert told[-1]["l1"] < told[0]["l1"] / 2
    assert told[-1]["latent_error"] < told[0]["latent_error"]
    assert ["perceptual" in metrics for metrics in told] == [step >= 5 for step in range(20)]
