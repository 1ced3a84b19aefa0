"""`reverie classify`: zero-shot classification of pictures, and its accuracy over a data set."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.cells import cell_len, set_cell_size

from reverie.cli.options import Json, Output, Whole, say, tell_numbered
from reverie.cli.progress import show_progress
from reverie.cli.similarity import ClipOptions
from reverie.errors import ReverieError
from reverie.files import find_path, read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reverie.similarity.classify import Classifier
    from reverie.similarity.embed import Clip
    from reverie.similarity.evaluate import Report

WORST = 10


def classify(
    *pictures: Path,
    labels: str | None = None,
    templates: str | None = None,
    top: Whole = 5,
    evaluate: Path | None = None,
    batch: Whole = 32,
    clip: ClipOptions = ClipOptions(),
    as_json: Json = False,
    output: Annotated[Output | None, Parameter(("--output", "-o"))] = None,
) -> None:
    """Name pictures by the likeliest of some labels, or measure over a folder how often that is right.

    Parameters
    ----------
    pictures
        Files of pictures.
    labels
        Labels, separated by commas, or a file with one a line. With --evaluate, a file with a folder's name, a tab and
        its label a line; the folders' own names if not given.
    templates
        Sentences that the labels stand in: plain, photo, openai (80), openai7, one with {} in it, or a file with one
        a line; if not given, plain for the bundled CLIP and photo for others.
    top
        How many labels to print of each picture.
    evaluate
        Folder with one folder of pictures a class: print top-1, top-5 and the worst classes.
    batch
        How many pictures to embed together.
    as_json
        Print one JSON object, or with several pictures one a line.
    output
        Picture file to draw the confusion matrix of --evaluate into.
    """
    sentences = None
    if templates is not None:
        from reverie.similarity.classify import find_templates  # brings torch, which takes seconds

        sentences = find_templates(templates)
    if batch < 1 or top < 1:
        raise ReverieError(f"--batch {batch} and --top {top} should be 1 or more")
    if evaluate is not None:
        if pictures:
            raise ReverieError("--evaluate takes a folder and no pictures; leave one of both out")
        _evaluate(evaluate, labels, sentences, clip, batch, output, as_json)
        return
    if output is not None:
        raise ReverieError("--output draws the confusion matrix, so it goes with --evaluate")
    if not pictures or labels is None:
        raise ReverieError("what is in which picture? reverie classify photo.jpg --labels cat,dog,bear")
    for picture in pictures:
        if not picture.is_file():
            raise ReverieError(f"no picture '{picture}': there is no such file")
    _name(pictures, read_labels(labels), sentences, clip, top, batch, as_json)


def read_labels(text: str) -> list[str]:
    """Read labels: a file with one a line, or a list with commas; each counts once. Raises ReverieError."""
    file = find_path(text)
    parts = read_lines(file) if file else [part.strip() for part in text.replace("，", ",").split(",")]
    counted = Counter(part for part in parts if part)
    labels = list(counted)
    if not labels:
        raise ReverieError(f"'{text}' holds no labels; write them with commas, or one a line in a file")
    if repeated := [label for label, count in counted.items() if count > 1]:
        print(f"each label counts once; given more than once: {', '.join(repeated)}", file=sys.stderr)
    if len(labels) == 1 and not file and Path(text).suffix:
        raise ReverieError(f"no file of labels '{text}'; write labels with commas, or give a file with one a line")
    if len(labels) == 1:
        raise ReverieError(f"the one label '{labels[0]}' is always the likeliest; give others to choose from")
    return labels


def read_names(file: str | None) -> dict[str, str] | None:
    """Read what folders stand for: a folder's name, a tab and a label in each line. Raises ReverieError."""
    if file is None:
        return None
    if not Path(file).is_file():
        raise ReverieError(f"no file '{file}'; --labels of --evaluate is one: a folder, a tab, a label in each line")
    lines = [line.split("\t") for line in read_lines(Path(file)) if line]
    if not all(len(line) == 2 for line in lines):
        raise ReverieError(f"'{file}' does not name classes; write a folder's name, a tab and its label in each line")
    return {folder.strip(): label.strip() for folder, label in lines}


def _name(
    pictures: Sequence[Path],
    labels: Sequence[str],
    templates: Sequence[str] | None,
    clip: ClipOptions,
    top: int,
    batch: int,
    as_json: bool,
) -> None:
    model = clip.load()
    classifier = _classifier(model, labels, templates)
    for start in range(0, len(pictures), batch):
        for found in classifier.name(pictures[start : start + batch], top=top, batch=batch):
            if as_json:
                say(json.dumps({"model": model.name, **found.record()}, ensure_ascii=False))
                continue
            say(found.picture)
            for guess in found.guesses:
                say(f"  {guess.probability:6.1%}  {guess.cosine:.3f}  {guess.label}")


def _classifier(model: Clip, labels: Sequence[str], templates: Sequence[str] | None) -> Classifier:
    """Embed the labels, which takes minutes for thousands of them in many templates, and show how far it is."""
    import torch

    from reverie.similarity.classify import Classifier, embed_labels

    events = embed_labels(model, labels, templates or model.templates)
    parts = [event.rows for event in show_progress(events)]
    return Classifier(model, tuple(labels), torch.cat(parts))


def _evaluate(
    folder: Path,
    names: str | None,
    templates: Sequence[str] | None,
    clip: ClipOptions,
    batch: int,
    output: Path | None,
    as_json: bool,
) -> None:
    from reverie.jobs.outputs import check_writable
    from reverie.media.pictures import save
    from reverie.similarity.evaluate import MOST_DRAWN, Report, evaluate, find_classes

    labels, samples = find_classes(folder, read_names(names))
    if output is not None:
        check_writable([output])
        if len(labels) > MOST_DRAWN:
            raise ReverieError(f"{len(labels)} classes are too many to draw, at most {MOST_DRAWN}; leave --output out")
    model = clip.load()
    classifier = _classifier(model, labels, templates)
    report = Report(classifier.labels)
    for event in show_progress(evaluate(classifier, samples, batch)):
        report = event.report
    if output is not None:
        save(report.picture(), output)
        tell_numbered(report.labels)
    if as_json:
        drawn = {"confusion": str(output) if output else None}
        say(json.dumps({"model": model.name, **report.record(), **drawn}, ensure_ascii=False))
        return
    _tell(report)


def _tell(report: Report) -> None:
    say(f"top-1 {report.top1:.2%}  top-5 {report.top5:.2%}  mean of classes {report.mean_per_class:.2%}")
    say(f"{report.count} pictures, {len(report.labels)} classes, {len(report.skipped)} files skipped")
    for skipped in report.skipped:
        say(f"skipped: {skipped.reason}")
    worst, shares = report.worst(WORST), report.shares()
    if not worst:
        return
    labels = [report.labels[index] for index in worst]
    width = max(map(cell_len, labels))
    for index, label in zip(worst, labels, strict=True):
        others = ", ".join(f"{other} {share:.0%}" for other, share in report.confusions(index)[:3] if other != label)
        say(f"{set_cell_size(label, width)}  {shares[index]:6.1%} right, else {others}")
