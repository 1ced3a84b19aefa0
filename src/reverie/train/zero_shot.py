"""Zero-shot accuracy of a CLIP, measured while it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reverie.codecs.clip_images import Preprocessing
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.errors import ReverieError
from reverie.models.clip import CLIP
from reverie.similarity.classify import PHOTO, PLAIN, Classifier
from reverie.similarity.embed import Clip
from reverie.similarity.evaluate import LabelledPicture, Report, evaluate, find_classes
from reverie.tokenizer import Tokenizer

Examination = Callable[[CLIP, Tokenizer], dict[str, float]]
HELD_OUT_SEED = 20_000  # benchmarks/quality.py draws from there on; no training does


@dataclass(frozen=True)
class EvaluationSettings:
    """Choose what is named every `sample_every` steps; nothing is, where neither is given."""

    folder: str = ""  # with one folder of pictures a class, called as the class
    templates: tuple[str, ...] = PHOTO  # the sentences that its classes are named in, each with a {}
    scenes: int = 0  # emoji scenes of one thing each, named among all English names of the subset
    batch: int = 64

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no run can use."""
        if self.scenes < 0 or self.batch < 1:
            raise ReverieError(f"scenes = {self.scenes}, batch = {self.batch} in [evaluation]; give 0 and 1, or more")


def examination(settings: EvaluationSettings, subset: str, size: int) -> Examination | None:
    """Prepare what the settings ask for. Raises ReverieError where the folder is none of classes."""
    exams: list[Examination] = []
    if settings.folder:
        labels, samples = find_classes(Path(settings.folder))
        exams.append(lambda clip, tokenizer: _folder(_ready(clip, tokenizer, size), labels, samples, settings))
    if settings.scenes:
        exams.append(lambda clip, tokenizer: _scenes(_ready(clip, tokenizer, size), subset, settings))
    if not exams:
        return None
    return lambda clip, tokenizer: {name: value for exam in exams for name, value in exam(clip, tokenizer).items()}


def _ready(clip: CLIP, tokenizer: Tokenizer, size: int) -> Clip:
    return Clip(model=clip, tokenizer=tokenizer, preprocessing=Preprocessing(size=size, edge=size))


def _folder(
    clip: Clip, labels: Sequence[str], samples: Sequence[LabelledPicture], settings: EvaluationSettings
) -> dict[str, float]:
    report = Report(tuple(labels))
    for event in evaluate(clip.classifier(labels, settings.templates), samples, settings.batch):
        report = event.report
    return {"top1": report.top1, "top5": report.top5}


def _scenes(clip: Clip, subset: str, settings: EvaluationSettings) -> dict[str, float]:
    """Return the share of lone things, in scenes that no training draws, whose English name is found among all."""
    things = concepts(subset)
    names = [(name, thing.emoji) for thing in things for name in thing.en]
    classifier = Classifier.of(clip, [name for name, _ in names], PLAIN)
    hits = 0
    for start in range(0, settings.scenes, settings.batch):
        shown = [
            scene_at(things, HELD_OUT_SEED, index, pair_share=0)
            for index in range(start, min(start + settings.batch, settings.scenes))
        ]
        rows = clip.embed_levels(clip.levels([Image.fromarray(render(scene)) for scene in shown]))
        guesses = classifier.cosines(rows).argmax(1).tolist()
        hits += sum(
            names[guess][1] == scene.objects[0].concept.emoji for guess, scene in zip(guesses, shown, strict=True)
        )
    return {"scenes_top1": hits / settings.scenes}
