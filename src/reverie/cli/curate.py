"""`reverie curate`: keep the samples of shards that are worth learning from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.options import Json, Whole
from reverie.cli.output import say
from reverie.cli.progress import show_progress
from reverie.cli.similarity import ClipOptions
from reverie.errors import ReverieError


def curate(
    source: Path,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"))],
    min_cosine: float | None = 0.28,
    min_text: Whole = 5,
    min_bytes: Whole = 5000,
    min_side: Whole = 0,
    max_aspect: float | None = None,
    duplicates: float | None = None,
    aesthetic: Path | None = None,
    min_aesthetic: float | None = None,
    workers: Whole = 1,
    ray: str | None = None,
    clip: ClipOptions = ClipOptions(),
    as_json: Json = False,
) -> None:
    """Write what is worth keeping of webdataset shards, as LAION filtered its own, with a report of what went and why.

    Run again, it goes on where it was; with other limits, it measures nothing again.

    Parameters
    ----------
    source
        Folder of .tar shards in img2dataset's layout, or one shard.
    output
        Folder for the filtered shards, a .jsonl beside each that tells of every sample, and report.html.
    min_cosine
        Least likeness of picture and text: 0.28 in LAION-5B, 0.3 in LAION-400M, by ViT-B/32; -1 keeps all, unmeasured.
    min_text
        Least letters of the text.
    min_bytes
        Least bytes of the picture's file.
    min_side
        Least pixels of the shorter side.
    max_aspect
        Most that the longer side may be, over the shorter.
    duplicates
        Cosine of two pictures from which the later is dropped as a near-duplicate, such as 0.96.
    aesthetic
        Weights of LAION's aesthetic predictor, for ViT-L/14.
    min_aesthetic
        Least aesthetic score: 5 in LAION-Aesthetics.
    workers
        How many processes of this machine share the work.
    ray
        Share the work by Ray instead: "local" starts it here, else the address of a cluster that sees the same folders.
    as_json
        Print the report as one JSON object.
    """
    if workers < 1:
        raise ReverieError(f"--workers {workers} should be 1 or more")
    if aesthetic is not None and not aesthetic.is_file():
        raise ReverieError(f"no aesthetic head '{aesthetic}': there is no such file")
    if min_aesthetic is not None and aesthetic is None:
        raise ReverieError("--min-aesthetic needs the weights of a head; give them with --aesthetic")
    from reverie.similarity.curation.rules import Rules
    from reverie.similarity.curation.samples import find_shards

    rules = Rules(
        min_cosine=None if min_cosine is not None and min_cosine <= -1 else min_cosine,
        min_text=min_text,
        min_bytes=min_bytes,
        min_side=min_side,
        max_aspect=max_aspect,
        min_aesthetic=min_aesthetic,
        duplicates=duplicates,
    )
    find_shards(source)  # what is wrong is said before a model is loaded
    from reverie.similarity.curation.measure import Scoring
    from reverie.similarity.curation.run import curate as run
    from reverie.similarity.curation.samples import by_processes, by_ray

    spread = by_processes(workers) if ray is None else by_ray(ray)
    scoring = Scoring(
        model=_absolute(clip.model),
        activation=clip.activation,
        revision=clip.revision,
        device=clip.device,
        dtype=clip.dtype,
        aesthetic=_absolute(aesthetic),
    )
    outcome = None
    for event in show_progress(run(source, output, rules, scoring=scoring, spread=spread)):
        outcome = event.outcome
    assert outcome is not None
    if as_json:
        say(json.dumps(outcome.record() | {"report": str(output / "report.html")}))
        return
    say(f"{outcome.kept} of {outcome.seen} samples kept in {output}; see {output / 'report.html'}")
    for reason, count in outcome.dropped.items():
        say(f"{count:8}  {reason}")
    for shard, damage in outcome.damaged.items():
        say(f"damaged {shard}: {damage}")


def _absolute(path: str | Path | None) -> str | None:
    """Name a file so that a process with another working directory finds it; other names stay."""
    if path is None:
        return None
    return str(Path(path).resolve()) if Path(path).exists() else str(path)
