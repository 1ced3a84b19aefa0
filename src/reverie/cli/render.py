"""`reverie render`: a file of requests drawn to webdataset shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.options import ModelOptions, Whole
from reverie.cli.output import say
from reverie.cli.progress import fetch, show_progress
from reverie.errors import ReverieError


def render(
    requests: Path,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"))],
    workers: Whole = 1,
    ray: str | None = None,
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
    workers
        How many processes of this machine share the work, a shard and a thread each.
    ray
        Share the work by Ray instead: "local" starts it here, else the address of a cluster that sees the same folders.
    shard_size
        How many requests a shard holds.
    seed
        Seed of the first request, where it names none; request n, from 0, has this plus n.
    """
    from reverie.jobs.render import read_requests
    from reverie.jobs.render import render as run
    from reverie.similarity.curation.samples import by_processes, by_ray

    asked = read_requests(requests, seed)
    spread = by_processes(workers) if ray is None else by_ray(ray)
    fetch(model)
    failed = 0
    for event in show_progress(run(asked, output, spread=spread, shard_size=shard_size, **vars(model))):
        for number, why in event.failed.items():
            print(f"request {number} failed: {why}", file=sys.stderr)
        failed += len(event.failed)
    say(f"{len(asked) - failed} of {len(asked)} requests drawn in {output}")
    if failed:
        raise ReverieError(f"{failed} of {len(asked)} requests failed; the others are drawn")
