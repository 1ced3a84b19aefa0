"""`reverie data`: how is training data written to disk?"""

from __future__ import annotations

from cyclopts import App

from reverie.cli.options import Output, Whole
from reverie.cli.output import say
from reverie.cli.progress import watched

app = App(name="data", help="Make training data.")


@app.command
def emoji(*, output: Output, count: Whole = 1000, subset: str = "common", seed: Whole = 0) -> None:
    """Write captioned emoji scenes as webdataset shards, in img2dataset's layout.

    Parameters
    ----------
    output
        Folder for the shards; made where it is missing.
    count
        How many scenes.
    subset
        Which concepts: all, common, animals, food, ...; an unknown name lists them all.
    seed
        Scene k of a seed is always the same.
    """
    from reverie.data.shards import write

    for _ in watched(write(output, subset=subset, count=count, seed=seed), lambda done: (done, count), "scenes"):
        pass
    say(str(output))
