"""An enlarged autoencoder draws what the small one draws, on the same latents, and learns to draw it sharper."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reverie.checkpoints.load import Components
from reverie.checkpoints.save import save_autoencoder
from reverie.corpora.concepts import Concept
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.train import enlarge, examples
from reverie.train.enlarge import EnlargeObjective, EnlargeSettings, enlarge_decoder, predictions, same_latents, stem
from reverie.train.examples import Scenes
from reverie.train.loop import Learner, RunSettings

THINGS = (Concept("🐻", "animal-mammal", ("bear",), ("熊",)), Concept("🍎", "food-fruit", ("apple",), ("苹果",)))


@pytest.fixture
def small() -> Autoencoder:
    """Give an autoencoder of f8 with random weights."""
    torch.manual_seed(0)
    widths = (4, 4, 8, 8)
    return Autoencoder(
        AutoencoderConfig(block_out_channels=widths, layers_per_block=1, norm_num_groups=2, sample_size=128)
    ).eval()


@torch.no_grad()
def test_it_starts_by_drawing_the_small_ones_features_with_their_pixels_repeated(small: Autoencoder) -> None:
    z = torch.randn(1, 4, 4, 4)
    large, caught = enlarge_decoder(small, 4), []
    small.decoder.conv_norm_out.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    large.decoder.conv_norm_out.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    assert small.decode(z).shape[-1] * 2 == large.decode(z).shape[-1] == 64
    assert torch.allclose(F.interpolate(caught[0], scale_factor=2), caught[1], atol=1e-5)
    assert large.factor == 16
    assert large.config.sample_size == 256


@torch.no_grad()
def test_diffusers_opens_it_and_computes_the_same(small: Autoencoder, tmp_path: Path) -> None:
    large = enlarge_decoder(small, 4)
    save_autoencoder(large, tmp_path)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    z, x = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 64, 64)
    assert torch.allclose(theirs.decode(z).sample, large.decode(z), atol=1e-4)
    assert torch.allclose(theirs.encode(x).latent_dist.mean, large.encode(x).mode(), atol=1e-4)


@torch.no_grad()
def test_a_stem_that_gives_what_the_small_encoder_makes_of_the_half_gives_its_latents(small: Autoencoder) -> None:
    large, x = enlarge_decoder(small, 4), torch.randn(1, 3, 64, 64)
    wanted = small.encoder.conv_in(F.avg_pool2d(x, 2))
    large.encoder.down_blocks[0].register_forward_hook(lambda module, inputs, output: wanted)
    assert torch.allclose(large.encode(x).mode(), small.encode(F.avg_pool2d(x, 2)).mode(), atol=1e-5)


def test_what_was_learned_outside_the_stem_tells_other_latents(small: Autoencoder) -> None:
    large = enlarge_decoder(small, 4)
    with torch.no_grad():
        stem(large, torch.zeros(1, 3, 16, 16))
        large.encoder.conv_in.weight.add_(1)  # the stem's, and the decoder's, may differ
        large.decoder.conv_out.weight.add_(1)
    assert same_latents(small, large)
    with torch.no_grad():
        large.encoder.conv_out.weight.add_(1e-3)
    assert not same_latents(small, large)


@pytest.fixture
def make(small: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EnlargeObjective]:
    """Make an objective on two scenes of black squares, with random latents; `enlarged` or the decoder alone."""
    monkeypatch.setattr(enlarge, "perceptual_features", lambda: lambda x: [F.avg_pool2d(x, 4)])
    monkeypatch.setattr(examples, "drawing", lambda emoji, size: np.zeros((size, size, 4), np.float32))
    large, latents = enlarge_decoder(small, 4), torch.randn(2, 2, 4, 16, 16)

    def make(enlarged: bool = False, **chosen: float) -> EnlargeObjective:
        settings = EnlargeSettings(base="", width=4, crop=4, batch=2, adversarial_width=4, **chosen)  # type: ignore[arg-type]
        scenes = Scenes(THINGS, 0, 2, scatter=0, scale=2)
        return EnlargeObjective(deepcopy(large), small if enlarged else None, scenes, latents, settings, 0)

    return make


@pytest.mark.parametrize("enlarged", [True, False])
def test_the_decoder_and_a_new_stem_learn_and_nothing_else(
    make: Callable[..., EnlargeObjective], enlarged: bool
) -> None:
    objective = make(enlarged)
    large = objective.averaged
    before = {name: value.clone() for name, value in large.state_dict().items()}
    learner = Learner(objective, RunSettings(steps=20, lr=1e-2, warmup=1))
    told = [dict(learner.step(step)) for step in range(20)]
    assert told[-1]["l1"] < told[0]["l1"]
    assert told[-1]["stem"] < told[0]["stem"] if enlarged else "stem" not in told[0]
    for name, value in large.state_dict().items():
        frozen = not name.startswith((*enlarge.DECODER, *(enlarge.STEM if enlarged else ())))
        assert not frozen or torch.equal(value, before[name]), name


def test_an_adversary_pulls_at_the_last_weight_by_its_share(make: Callable[..., EnlargeObjective]) -> None:
    both, alone = make(adversarial=0.5, adversarial_start=1), make()
    assert [name for name, *_ in both.losses(0)] == ["decoder"]  # its time has not come
    (of_both, of_alone) = (
        torch.autograd.grad(next(one.losses(1))[1], one.averaged.decoder_last_weight())[0] for one in (both, alone)
    )
    assert (of_both - of_alone).norm().item() == pytest.approx(0.5 * of_alone.norm().item(), rel=0.01)


def test_an_adversary_tells_scenes_from_what_is_drawn(make: Callable[..., EnlargeObjective]) -> None:
    objective = make(adversarial=1e-6)
    learner = Learner(objective, RunSettings(steps=30, lr=1e-3, warmup=1))
    told = [dict(learner.step(step)) for step in range(30)]
    assert told[-1]["real"] - told[-1]["fake"] > 0.5 > told[0]["real"] - told[0]["fake"]
    assert told[-1]["hinge"] < told[0]["hinge"]


def test_latents_are_drawn_of_captions_alone_where_steps_are_given(tmp_path: Path, expecting: Any) -> None:
    """A network that expects the same x0 at every noise level leads there, whatever the scene's own latents are."""
    expected, config = torch.randn(1, 4, 2, 2), ScheduleConfig(prediction="v")
    unet = expecting(expected, config, [])
    base = SimpleNamespace(
        unet=unet,
        schedule_config=config,
        guidance=3.0,
        tokenizers=(lambda texts: torch.zeros(len(texts), 1),),
        text_encoders=(lambda ids: SimpleNamespace(last=ids),),
    )
    latents = torch.zeros(3, 4, 2, 2)
    settings = EnlargeSettings("", steps=5)
    pairs = predictions(cast(Components, base), Scenes(THINGS, 5, 3), latents, settings, 0, tmp_path / "pairs")
    torch.testing.assert_close(pairs[:, 0].float(), expected.expand(3, -1, -1, -1), atol=5e-3, rtol=1e-3)
    assert torch.equal(pairs[:, 1].float(), latents)
