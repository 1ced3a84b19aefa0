"""`reverie index` and `reverie search`: an index of pictures by CLIP embedding, searched by words and pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.options import Json, Whole, say
from reverie.cli.progress import show_progress
from reverie.cli.similarity import ClipOptions
from reverie.errors import ReverieError

LISTED = 20  # files that could not be read, named on the terminal
HTML = {".html", ".htm"}
Texts = Annotated[list[str] | None, Parameter(negative=())]
Pictures = Annotated[list[Path] | None, Parameter(negative=())]


def index(
    source: Path,
    *,
    output: Annotated[Path, Parameter(("--output", "-o"))],
    batch: Whole = 32,
    workers: Whole = 2,
    clip: ClipOptions = ClipOptions(),
    as_json: Json = False,
) -> None:
    """Embed a folder of pictures, or of webdataset shards, so that it can be searched.

    Run again, it embeds what is new or changed and forgets what is gone; stopped, it goes on where it was.

    Parameters
    ----------
    source
        Folder of pictures or .tar shards, or one shard.
    output
        Folder of the index.
    batch
        How many pictures to embed together.
    workers
        How many threads decode pictures.
    as_json
        Print one JSON object.
    """
    if batch < 1 or workers < 1:
        raise ReverieError(f"--batch {batch} and --workers {workers} should be 1 or more")
    if not source.exists():
        raise ReverieError(f"no pictures at '{source}': there is no such folder or shard")
    from reverie.similarity.index import open_index
    from reverie.similarity.update import update

    start, last = time.monotonic(), None
    events = update(output, source, clip.load(), batch=batch, workers=workers)
    for event in show_progress(events):
        last = event
    assert last is not None
    made = open_index(output)
    skipped = list({one.name: one for one in (*last.skipped, *made.skipped)}.values())
    seconds = time.monotonic() - start
    if as_json:
        summary = {"index": str(output), "model": made.header.model, "pictures": len(made), "added": last.added}
        summary |= {"gone": last.gone, "skipped": [one._asdict() for one in skipped], "seconds": round(seconds, 2)}
        say(json.dumps(summary))
        return
    rate = f", {last.done / seconds:.1f} a second" if last.done else ""
    say(f"{len(made)} pictures in {output}: {last.added} added{rate}, {last.gone} gone, {len(skipped)} skipped")
    for one in skipped[:LISTED]:
        say(f"skipped {printable(one.name)}: {printable(one.reason)}")
    if len(skipped) > LISTED:
        say(f"... and {len(skipped) - LISTED} more; --json lists all")


def search(
    folder: Path,
    *texts: str,
    like: Pictures = None,
    without: Texts = None,
    unlike: Pictures = None,
    top: Whole = 10,
    by: str = "numpy",
    clip: ClipOptions = ClipOptions(),
    as_json: Json = False,
    output: Annotated[Path | None, Parameter(("--output", "-o"))] = None,
) -> None:
    """Find the pictures of an index that are most like texts and pictures, added up.

    Parameters
    ----------
    folder
        Folder of the index.
    texts
        What to look for.
    like
        A picture to look for the like of, a file or a name that a search of this index printed; several times.
    without
        A text that should count nothing; several times.
    unlike
        A picture that should count nothing, as in --like; several times.
    top
        How many pictures to find.
    by
        numpy, which compares all, or faiss, which is quicker over many hundreds of thousands.
    as_json
        Print one JSON object.
    output
        HTML file to show the pictures in.
    """
    if top < 1:
        raise ReverieError(f"--top {top} should be 1 or more")
    if output is not None and (output.suffix.lower() not in HTML or not output.parent.is_dir() or output.is_dir()):
        raise ReverieError(f"cannot write '{output}'; give the name of an .html file in a folder that is there")
    from reverie.similarity.index import open_index
    from reverie.similarity.search import NEAREST, Query, contact_sheet, find_picture, write_page
    from reverie.similarity.search import search as find

    if by not in NEAREST:
        raise ReverieError(f"unknown way to search '{by}'; choose from {', '.join(NEAREST)}")
    if not (texts or like or without or unlike):
        raise ReverieError('nothing to look for; reverie search index/ "a red apple", or --like apple.jpg')
    found = open_index(folder)
    pictures = [tuple(find_picture(found, name) for name in names or ()) for names in (like, unlike)]
    query = Query(texts, pictures[0], tuple(without or ()), pictures[1])
    results = find(found, clip.load(), query, top=top, nearest=NEAREST[by])
    if output is not None:
        write_page(output, contact_sheet(results))
    if as_json:
        say(json.dumps(results.record() | {"html": str(output) if output else None}))
        return
    for hit in results.hits:
        say(f"{hit.cosine:.3f}  {printable(hit.name)}")


def printable(text: str) -> str:
    """Make a file's name fit for a terminal, which neither control characters nor half a letter are."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
