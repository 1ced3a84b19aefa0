"""Do the classifiers learn the objects of a scene, and come back from their folder?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.corpora.scenes import scene_at
from reverie.errors import ReverieError
from reverie.models.classifier import CLASSIFIERS, ClassifierConfig, PlainNet
from reverie.train.classifier import (
    ClassifierObjective,
    ClassifierSettings,
    coarsen,
    degrade,
    load_classifier,
    load_features,
)


def objective(**changed: Any) -> ClassifierObjective:
    torch.manual_seed(0)
    tiny = {"make": "residual", "widths": (4, 8), "subset": "instruments", "batch": 3}
    return ClassifierObjective(ClassifierSettings(**tiny | changed), seed=6)


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_one_logit_a_class_at_any_size(make: str) -> None:
    torch.manual_seed(0)
    network = CLASSIFIERS[make](ClassifierConfig(make, classes=5, widths=(4, 8, 12)))
    for size in (32, 64):
        assert network(torch.rand(2, 3, size, size) * 2 - 1).shape == (2, 5)


def test_feature_maps_come_before_each_pooling() -> None:
    network = PlainNet(ClassifierConfig("plain", classes=5, widths=(4, 8, 12)))
    maps = network.features(torch.zeros(1, 3, 32, 32))
    assert [tuple(one.shape) for one in maps] == [(1, 4, 32, 32), (1, 8, 16, 16), (1, 12, 8, 8)]


def test_targets_share_belief_between_the_objects(corpus: None) -> None:
    judge = objective()
    for index in range(40):
        picture, target = judge._item(index)
        scene = scene_at(judge.things, 6, index)
        named = {judge.numbers[placed.concept.emoji] for placed in scene.objects}
        assert picture.shape == (3, 128, 128)
        assert set(target.nonzero()[0]) == named
        assert target.sum() == pytest.approx(1)


def test_a_crop_is_named_after_its_first_object(corpus: None) -> None:
    features = objective(make="plain", crop=32)
    for index in range(40):
        picture, target = features._item(index)
        first = scene_at(features.things, 6, index).objects[0]
        assert picture.shape == (3, 32, 32)
        assert target.argmax() == features.numbers[first.concept.emoji]
        assert target.max() == 1


def test_a_coarsened_image_holds_nothing_finer_than_the_factor() -> None:
    fine = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1, 8, 8)
    torch.testing.assert_close(coarsen(fine, 2), torch.zeros(1, 1, 16, 16))
    flat = torch.full((1, 3, 13, 10), 0.25)
    torch.testing.assert_close(coarsen(flat, 3), flat)
    assert coarsen(fine, 1) is fine


def test_each_image_is_degraded_by_itself() -> None:
    settings = ClassifierSettings(make="residual", widths=(4,), coarsest=4)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made = degrade(image.repeat(40, 1, 1, 1), settings, torch.Generator().manual_seed(2))
    expected = [coarsen(image, factor)[0] for factor in range(1, 5)]
    kinds = [next(i for i, one in enumerate(expected) if torch.equal(one, row)) for row in made]
    assert set(kinds) == {0, 1, 2, 3}


def test_noise_is_the_same_at_every_call(corpus: None) -> None:
    judge = objective(noise=0.3).averaged.eval()
    noisy = objective(noise=0.3)
    noisy.averaged.load_state_dict(judge.state_dict())
    noisy.averaged.eval()
    losses = [next(noisy.losses(2))[1].item() for _ in range(2)]
    assert losses[0] == losses[1]
    clean = objective()
    clean.averaged.load_state_dict(judge.state_dict())
    clean.averaged.eval()
    assert next(clean.losses(2))[1].item() != losses[0]


def test_a_trained_classifier_comes_back(workshop: Any) -> None:
    folder = workshop.trained("features") / "export"
    network, names = load_classifier(folder)
    assert isinstance(network, PlainNet)
    assert not network.training
    assert len(names) == network.config.classes
    assert names[0] == objective().things[0].emoji
    average = torch.load(folder.parent / "checkpoint.pt", weights_only=True)["average"]["weights"]
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, average[name].half().float())
    maps = load_features(folder).features(torch.zeros(1, 3, 16, 16))
    assert [one.shape[1] for one in maps] == [4, 8]


def test_features_need_a_plain_network(corpus: None, tmp_path: Path) -> None:
    objective().export(tmp_path)
    with pytest.raises(ReverieError, match="has no feature maps; train one with make = 'plain'"):
        load_features(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=re.escape(f"no trained classifier in {tmp_path}")):
        load_classifier(tmp_path)


def test_unknown_make(corpus: None) -> None:
    with pytest.raises(ReverieError, match="unknown classifier 'deep'; choose from plain, residual"):
        objective(make="deep")
