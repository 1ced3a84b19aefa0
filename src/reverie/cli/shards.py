"""`reverie curate`, `render` and `encode`: shards filtered, drawn and encoded, by processes or machines."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reverie.cli.options import Flag, Json, ModelOptions, Whole, say
from reverie.cli.progress import fetch, show_progress
from reverie.cli.similarity import ClipOptions
from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.similarity.curation.report import Curated
    from reverie.similarity.curation.rules import Rules
    from reverie.similarity.curation.samples import Spread


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SpreadOptions:
    """Share the work, a shard at a time."""

    workers: Whole = 1
    """How many processes of this machine share the work."""
    ray: str | None = None
    """Share it by Ray instead: "local" starts it here, else the address of a cluster that sees the same folders."""

    def spread(self) -> Spread:
        """Return what spreads it. Raises ReverieError for no workers, and where Ray is missing."""
        from reverie.similarity.curation.samples import by_processes, by_ray

        if self.workers < 1:
            raise ReverieError(f"--workers {self.workers} should be 1 or more")
        return by_processes(self.workers) if self.ray is None else by_ray(self.ray)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Choose what a sample needs. See `similarity.curation.rules.Rules`."""

    min_cosine: float | None = 0.28
    """Least likeness of picture and text (ViT-B/32: 0.28 in LAION-5B, 0.3 in LAION-400M); -1 keeps all, unmeasured."""
    min_text: Whole = 5
    """Least letters of the text."""
    min_bytes: Whole = 5000
    """Least bytes of the picture's file."""
    min_side: Whole = 0
    """Least pixels of the shorter side."""
    max_aspect: float | None = None
    """Most that the longer side may be, over the shorter."""
    duplicates: float | None = None
    """Cosine of two pictures from which the later is dropped as a near-duplicate, such as 0.96."""
    min_aesthetic: float | None = None
    """Least aesthetic score: 5 in LAION-Aesthetics."""

    def rules(self) -> Rules:
        """Return the rules. Raises ReverieError for a limit that is none."""
        from reverie.similarity.curation.rules import Rules

        unmeasured = self.min_cosine is not None and self.min_cosine <= -1
        return Rules(**vars(self) | {"min_cosine": None if unmeasured else self.min_cosine})


def curate(
    source: Path,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"))],
    limits: RuleOptions = RuleOptions(),
    aesthetic: Path | None = None,
    sharing: SpreadOptions = SpreadOptions(),
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
    aesthetic
        Weights of LAION's aesthetic predictor, for ViT-L/14.
    as_json
        Print the report as one JSON object.
    """
    spread = sharing.spread()
    if aesthetic is not None and not aesthetic.is_file():
        raise ReverieError(f"no aesthetic head '{aesthetic}': there is no such file")
    if limits.min_aesthetic is not None and aesthetic is None:
        raise ReverieError("--min-aesthetic needs the weights of a head; give them with --aesthetic")
    rules = limits.rules()
    from reverie.similarity.curation.samples import find_shards

    find_shards(source)  # what is wrong is said before a model is loaded
    from reverie.similarity.curation.measure import Scoring
    from reverie.similarity.curation.run import curate as run

    scoring = Scoring(**vars(clip) | {"model": _absolute(clip.model), "aesthetic": _absolute(aesthetic)})
    *_, last = show_progress(run(source, output, rules, scoring=scoring, spread=spread))
    assert last.outcome is not None
    if as_json:
        say(json.dumps(last.outcome.record() | {"report": str(output / "report.html")}))
    else:
        _tell(last.outcome, output)


def _tell(outcome: Curated, output: Path) -> None:
    say(f"{outcome.kept} of {outcome.seen} samples kept in {output}; see {output / 'report.html'}")
    for reason, count in outcome.dropped.items():
        say(f"{count:8}  {reason}")
    for shard, damage in outcome.damaged.items():
        say(f"damaged {shard}: {damage}")


def render(
    requests: Path,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"))],
    sharing: SpreadOptions = SpreadOptions(),
    shard_size: Whole = 100,
    seed: Whole = 0,
    model: ModelOptions = ModelOptions(),
) -> None:
    """Draw a file of requests to webdataset shards. Run again, it goes on where it was.

    Parameters
    ----------
    requests
        JSON lines of requests for pictures, films and music, or a .csv with a column per field.
    output
        Folder for the shards.
    shard_size
        How many requests a shard holds.
    seed
        Seed of the first request, where it names none; request n, from 0, has this plus n.
    """
    from reverie.jobs.render import read_requests
    from reverie.jobs.render import render as run

    asked, spread = read_requests(requests, seed), sharing.spread()
    fetch(model)
    failed = 0
    for event in show_progress(run(asked, output, spread=spread, shard_size=shard_size, **vars(model))):
        for number, why in event.failed.items():
            print(f"request {number} failed: {why}", file=sys.stderr)
        failed += len(event.failed)
    say(f"{len(asked) - failed} of {len(asked)} requests drawn in {output}")
    if failed:
        raise ReverieError(f"{failed} of {len(asked)} requests failed; the others are drawn")


def encode(
    source: str,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"))],
    size: Whole = 0,
    buckets: Whole = 0,
    texts: Flag = False,
    sharing: SpreadOptions = SpreadOptions(),
    model: str | None = None,
    vae: str | None = None,
    device: str = "auto",
) -> None:
    """Encode the pictures of shards to latents, for `latents` in [data] of recipes. Run again, it goes on.

    Parameters
    ----------
    source
        Folder of .tar shards in img2dataset's layout, one shard, or an address such as s3://bucket/{00000..00999}.tar.
    output
        Folder for latents and captions.
    size
        Pictures are cut to squares of so many pixels; the model's if not given.
    buckets
        Pictures keep their shapes instead, with sides of multiples of so many pixels, such as 64.
    texts
        Encode the captions too, for training with frozen text encoders.
    model
        Model whose autoencoder and text encoders do it: folder, file or owner/name; the bundled one if not given.
    vae
        Autoencoder to put in place of the model's: a folder or a file.
    device
        cpu, cuda or mps; auto takes a GPU where there is one.
    """
    from reverie.data.remote import is_remote
    from reverie.similarity.curation.samples import find_shards

    spread = sharing.spread()
    if not is_remote(source):
        find_shards(source)  # what is wrong is said before torch is loaded
    from reverie.train.encode import encode as run

    options = {"path": _absolute(model), "vae": _absolute(vae), "device": device}
    given = {name: value for name, value in options.items() if value is not None}
    pictures = shards = lost = 0
    for event in show_progress(run(source, output, size=size, buckets=buckets, texts=texts, spread=spread, **given)):
        for note in event.left_out:
            print(note, file=sys.stderr)
        pictures, shards = pictures + event.pictures, event.total
        lost += event.done > 0 and not event.pictures
    say(f"{pictures} pictures of {shards} shards encoded in {output}")
    if lost:
        rest = "the others are encoded" if lost < shards else "nothing is encoded"
        raise ReverieError(f"{lost} of {shards} shards gave no pictures; {rest}")


def _absolute(path: str | Path | None) -> str | None:
    """Name a file so that a process with another working directory finds it; other names stay."""
    if path is None:
        return None
    return str(Path(path).resolve()) if Path(path).exists() else str(path)
