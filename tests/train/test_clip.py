"""Does CLIP's training tell pictures with their captions, clamp its temperature and export what transformers reads?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reverie.checkpoints.load import load_clip
from reverie.data.concepts import concepts
from reverie.data.scenes import render, scene_at
from reverie.models.clip import IMAGE_MEAN, IMAGE_STD, normalise
from reverie.train.clip import TextSettings, build, captioned_scene, named_thing, train_tokenizer
from reverie.train.recipe import read


def test_pixels_have_clips_mean_and_deviation() -> None:
    mean = (torch.tensor(IMAGE_MEAN) * 255).view(1, 3, 1, 1)
    assert normalise(mean).abs().max().item() < 1e-6
    above = normalise(mean + 255 * torch.tensor(IMAGE_STD).view(1, 3, 1, 1))
    torch.testing.assert_close(above, torch.ones(1, 3, 1, 1))


def test_pictures_come_with_a_caption(corpus: None) -> None:
    things = concepts("instruments")
    picture, caption = captioned_scene(things, 1, 5)
    assert np.array_equal(picture, render(scene_at(things, 1, 5)).transpose(2, 0, 1))
    assert captioned_scene(things, 1, 5)[1] == caption


def test_the_vocabulary_is_made_of_the_captions_alone(corpus: None) -> None:
    things = concepts("instruments")
    settings = TextSettings(vocabulary=600, length=16, captions=200)
    one, other = (train_tokenizer(things, settings, seed=2) for _ in range(2))
    assert one.vocab == other.vocab
    assert one.length == 16
    assert 514 < len(one) <= 600


def test_named_things_are_distinct_within_a_batch_and_bare(corpus: None) -> None:
    things, batch = concepts("instruments"), 8
    meant = {name: thing.emoji for thing in things for name in thing.en + thing.zh}
    for start in (0, 8, 16):
        items = [named_thing(things, 1, index, batch) for index in range(start, start + batch)]
        assert len({meant[name] for _, name in items}) == batch
        assert all(picture.shape == (3, 128, 128) for picture, _ in items)
    picture, name = named_thing(things, 1, 3, batch)
    again, name_again = named_thing(things, 1, 3, batch)
    assert np.array_equal(picture, again)
    assert name == name_again


def test_every_other_batch_names_things(workshop: Any) -> None:
    objective = build(read(workshop.recipe("clip")), 3, Path())
    meant = {name for thing in objective.things for name in thing.en + thing.zh}
    for step in range(4):
        _, captions = objective.batches(step)
        bare = all(caption in meant for caption in captions)
        assert bare == (step % 2 == 1)


def test_losses_start_at_chance_and_the_temperature_is_clamped(workshop: Any) -> None:
    objective = build(read(workshop.recipe("clip")), 3, Path())
    ((name, loss, metrics),) = objective.losses(0)
    assert name == "clip"
    assert math.isfinite(loss.item())
    assert metrics["scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    with torch.no_grad():
        objective.averaged.logit_scale.fill_(9)
    objective.after_step()
    assert objective.averaged.logit_scale.exp().item() == pytest.approx(100)
    assert objective.samples() is None


def test_the_export_holds_the_average(workshop: Any) -> None:
    out = workshop.trained("clip")
    loaded = load_clip(out / "export", device=torch.device("cpu"), dtype=torch.float32)
    average = torch.load(out / "checkpoint.pt", weights_only=True)["average"]["weights"]
    assert all(torch.equal(value, average[name]) for name, value in loaded.clip.named_parameters())
    assert loaded.tokenizer(["一只熊", "a bear"]).shape == (2, 16)
