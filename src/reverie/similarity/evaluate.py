"""Zero-shot accuracy over a folder with one folder a class, and the confusion of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.errors import ReverieError
from reverie.media.charts import heat_map
from reverie.media.pictures import READABLE
from reverie.progress import Progress
from reverie.similarity.classify import Classifier

TOP = 5
MOST_DRAWN = 1600  # classes: a pixel each


class LabelledPicture(NamedTuple):
    """Name a picture's file and its class, by number."""

    file: Path
    truth: int


@dataclass(frozen=True)
class SkippedFile:
    """Name a file that could not be read, and say why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Count who was taken for whom: `confusion[truth, guess]`, by the numbers of `labels`."""

    labels: tuple[str, ...]
    confusion: Mapping[tuple[int, int], int] = field(repr=False, default_factory=dict)
    hits: int = 0
    """How often the truth was among the five likeliest."""
    skipped: tuple[SkippedFile, ...] = ()

    @property
    def count(self) -> int:
        """Return how many pictures were named."""
        return sum(self.confusion.values())

    @property
    def top1(self) -> float:
        """Return the share whose likeliest label was true."""
        return sum(n for (truth, guess), n in self.confusion.items() if truth == guess) / max(1, self.count)

    @property
    def top5(self) -> float:
        """Return the share whose true label was among the five likeliest."""
        return self.hits / max(1, self.count)

    @property
    def mean_per_class(self) -> float:
        """Return top-1 averaged over the classes that have pictures, so that large ones do not count for more."""
        shares = list(self.shares().values())
        return sum(shares) / max(1, len(shares))

    def shares(self) -> dict[int, float]:
        """Return top-1 of each class that has pictures."""
        totals: Counter[int] = Counter()
        for (truth, _), n in self.confusion.items():
            totals[truth] += n
        return {truth: self.confusion.get((truth, truth), 0) / n for truth, n in sorted(totals.items())}

    def add(self, cosines: Float[Tensor, "b n"], truths: Sequence[int]) -> Report:
        """Count a batch more."""
        ranked = cosines.topk(min(TOP, cosines.shape[1]), -1).indices
        counts = Counter(dict(self.confusion))
        counts.update(zip(truths, ranked[:, 0].tolist(), strict=True))
        hits = int((ranked == torch.tensor(truths)[:, None]).any(1).sum())
        return replace(self, confusion=dict(counts), hits=self.hits + hits)

    def worst(self, count: int = 10) -> list[int]:
        """List the classes that are missed most often, the worst first; those never missed are left out."""
        shares = self.shares()
        return [truth for truth in sorted(shares, key=lambda truth: shares[truth]) if shares[truth] < 1][:count]

    def confusions(self, truth: int) -> list[tuple[str, float]]:
        """List what a class was taken for, itself too, with its share, the most frequent first."""
        row = {guess: n for (true, guess), n in self.confusion.items() if true == truth}
        total = sum(row.values())
        return [(self.labels[guess], n / total) for guess, n in sorted(row.items(), key=lambda item: -item[1])]

    def matrix(self, classes: Sequence[int]) -> list[list[float]]:
        """Return shares of guesses (columns) for truths (rows) among some classes; guesses of others are left out."""
        totals: Counter[int] = Counter()
        for (truth, _), n in self.confusion.items():
            totals[truth] += n
        return [[self.confusion.get((t, g), 0) / max(1, totals[t]) for g in classes] for t in classes]

    def picture(self, classes: Sequence[int] | None = None) -> Image.Image:
        """Draw the confusion matrix, truths as rows; of some classes, or of all. Raises ReverieError for too many."""
        classes = range(len(self.labels)) if classes is None else classes
        if len(classes) > MOST_DRAWN:
            raise ReverieError(f"{len(classes)} classes are too many to draw; at most {MOST_DRAWN}")
        names = [self.labels[index] for index in classes]
        return heat_map(self.matrix(classes), names, names, lambda share: f"{share:.0%}" if share else "")

    def record(self) -> dict[str, object]:
        """Return plain values for JSON."""
        shares = self.shares()
        return {
            "pictures": self.count,
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "classes": {self.labels[index]: share for index, share in shares.items()},
            "worst": [{"label": self.labels[i], "taken_for": dict(self.confusions(i)[:3])} for i in self.worst()],
            "skipped": [{"file": one.file, "reason": one.reason} for one in self.skipped],
        }


@dataclass(frozen=True)
class Evaluation(Progress):
    """How many of all pictures are classified, and the report so far."""

    report: Report


def find_classes(folder: Path, names: Mapping[str, str] | None = None) -> tuple[tuple[str, ...], list[LabelledPicture]]:
    """List the labels and the pictures of a folder with one folder a class; links out of it are not followed.

    A class is called as its folder, with spaces for underscores, or as `names` calls it. Raises ReverieError where
    there are no such folders, or `names` leaves one out.
    """
    if not folder.is_dir():
        raise ReverieError(f"no folder '{folder}'; give one that holds a folder of pictures for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if names is not None and (unnamed := [path.name for path in classes if path.name not in names]):
        others = f" (and {len(unnamed) - 1} others)" if len(unnamed) > 1 else ""
        raise ReverieError(f"the class '{unnamed[0]}'{others} in '{folder}' has no label; name every folder")
    samples = [
        LabelledPicture(file, number)
        for number, path in enumerate(classes)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in READABLE and file.is_file() and file.resolve().is_relative_to(folder.resolve())
    ]
    if not samples:
        raise ReverieError(f"no pictures in folders of '{folder}'; it should hold one folder of pictures a class")
    labels = tuple(names[path.name] if names else path.name.replace("_", " ") for path in classes)
    return labels, samples


def evaluate(classifier: Classifier, samples: Sequence[LabelledPicture], batch: int = 32) -> Iterator[Evaluation]:
    """Name pictures and count. A file that cannot be read is skipped and reported, and its batch goes on without it."""
    report = Report(classifier.labels)
    for start in range(0, len(samples), batch):
        rows, truths = [], []
        for sample in samples[start : start + batch]:
            try:
                rows.append(classifier.clip.levels([sample.file]))
            except ReverieError as error:
                report = replace(report, skipped=(*report.skipped, SkippedFile(str(sample.file), str(error))))
            else:
                truths.append(sample.truth)
        if rows:
            report = report.add(classifier.cosines(classifier.clip.embed_levels(torch.cat(rows))), truths)
        yield Evaluation(min(start + batch, len(samples)), len(samples), "pictures", report)
