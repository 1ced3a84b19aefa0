"""Accuracy over a folder per class: counted by hand, with broken files, links and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.media.charts import VIRIDIS
from reverie.similarity.embed import Clip
from reverie.similarity.evaluate import Report, evaluate, find_classes

LABELS = tuple("abcdefg")


@pytest.fixture
def folder(tmp_path: Path, pictures: list[Path]) -> Path:
    for name, files in {"brown_bear": pictures[:3], "apple": pictures[3:]}.items():
        (tmp_path / "set" / name / "deeper").mkdir(parents=True)
        for file in files:
            (tmp_path / "set" / name / "deeper" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "set" / "apple" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (tmp_path / "set" / "apple" / "notes.txt").write_text("no picture")
    (tmp_path / "set" / ".hidden").mkdir()
    return tmp_path / "set"


def test_counts_by_hand() -> None:
    """Four pictures: right; wrong but second; wrong and seventh; right. Batches do not matter."""
    cosines = torch.tensor(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.8, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.5, 0.9, 0.6, 0.7, 0.8, -0.1],
            [0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    truths = [0, 1, 6, 1]
    report = Report(LABELS).add(cosines, truths)
    parts = Report(LABELS).add(cosines[:1], truths[:1]).add(cosines[1:], truths[1:])
    assert report == parts
    assert (report.count, report.top1, report.top5) == (4, 0.5, 0.75)
    assert report.mean_per_class == pytest.approx((1 + 0.5 + 0) / 3)
    assert report.worst() == [6, 1]
    assert report.confusions(1) == [("a", 0.5), ("b", 0.5)]
    assert report.matrix([1, 6]) == [[0.5, 0.0], [0.0, 0.0]]
    told = json.loads(json.dumps(report.record()))
    assert told["classes"] == {"a": 1.0, "b": 0.5, "g": 0.0}
    assert told["worst"][0] == {"label": "g", "taken_for": {"c": 1.0}}


def test_the_picture_shows_shares() -> None:
    report = Report(("a", "b"), {(0, 0): 3, (0, 1): 0, (1, 0): 5, (1, 1): 0})
    picture = report.picture()
    right, below = picture.width - 8 - 28, picture.height - 8 - 28  # inside the last column and row
    ink = 20  # away from the middle, where the numbers are
    assert picture.getpixel((right - 56, below - 56 - ink)) == VIRIDIS[-1]  # all of a for a
    assert picture.getpixel((right, below - 56 - ink)) == VIRIDIS[0]
    assert picture.getpixel((right - 56, below - ink)) == VIRIDIS[-1]  # all of b for a
    with pytest.raises(ReverieError, match="too many to draw"):
        Report(("a",) * 2000).picture()


def test_an_empty_report() -> None:
    assert (Report(LABELS).top1, Report(LABELS).top5, Report(LABELS).mean_per_class) == (0, 0, 0)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_folder_is_evaluated(clip: Clip, folder: Path, pictures: list[Path], batch: int) -> None:
    labels, samples = find_classes(folder)
    assert labels == ("apple", "brown bear")
    classifier = clip.classifier(labels)
    events = list(evaluate(classifier, samples, batch))
    report = events[-1].report
    assert events[-1].done == events[-1].total == 8
    assert report.count == 7
    assert [Path(one.file).name for one in report.skipped] == ["broken.png"]
    right = [classifier.name([file], top=1)[0].label == "brown bear" for file in pictures[:3]]
    right += [classifier.name([file], top=1)[0].label == "apple" for file in pictures[3:]]
    assert report.top1 == pytest.approx(sum(right) / 7)
    assert report.top5 == 1


def test_classes_can_be_named(folder: Path) -> None:
    labels, _ = find_classes(folder, {"apple": "苹果", "brown_bear": "熊", "more": "no folder of that name"})
    assert labels == ("苹果", "熊")
    with pytest.raises(ReverieError, match=r"'brown_bear' in .* has no label"):
        find_classes(folder, {"apple": "x"})


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "apple" / "link.png").symlink_to(tmp_path / "secret.png")
    assert not [sample for sample in find_classes(folder)[1] if sample.file.name == "link.png"]


def test_folders_without_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="no pictures in folders"):
        find_classes(tmp_path)
    with pytest.raises(ReverieError, match="no folder"):
        find_classes(tmp_path / "missing")
