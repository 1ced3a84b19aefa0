"""`reverie data` and `reverie concepts`: training data written to disk, and what the bundled model knows."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cyclopts import App

from reverie.cli.options import Json, Output, Whole
from reverie.cli.output import say
from reverie.cli.progress import show_progress
from reverie.errors import ReverieError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    from reverie.corpora.shards import write

    for _ in show_progress(write(output, subset=subset, count=count, seed=seed)):
        pass
    say(str(output))


@app.command
def music(*, output: Output, count: Whole = 1000, seed: Whole = 0, font: Path | None = None) -> None:
    """Write composed music with captions as webdataset shards of FLAC files, in img2dataset's layout.

    Needs fluidsynth and a sound font: apt install libfluidsynth3 fluid-soundfont-gm; pip install 'reverie[sound]'.

    Parameters
    ----------
    output
        Folder for the shards; made where it is missing.
    count
        How many clips of 5.12 s.
    seed
        Clip k of a seed is always the same.
    font
        Sound font, a .sf2 file; FluidR3_GM.sf2 or TimGM6mb.sf2, whichever is installed, if not given.
    """
    from reverie.corpora.music.shards import write

    for _ in show_progress(write(output, _flac, count=count, seed=seed, font=font)):
        pass
    say(str(output))


def _flac(samples: NDArray[np.float32], rate: int) -> bytes:
    import torch

    from reverie.media.sound import Sound, encode

    return encode(Sound(torch.from_numpy(samples), rate), ".flac")


class ConceptRow(TypedDict):
    """Name one thing that the bundled model can draw, in all the words that it was taught."""

    emoji: str
    en: list[str]
    zh: list[str]


def known_concepts() -> list[ConceptRow]:
    """Read what the bundled model was trained on. Raises ReverieError where the package came without its models."""
    source = files("reverie") / "assets" / "bundled" / "concepts.json"
    try:
        known: list[ConceptRow] = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReverieError("this installation holds no bundled model; train one with `reverie train`") from error
    return known


def concepts(*, as_json: Json = False) -> None:
    """List what the bundled model knows: the emoji that it was trained on, the English and the Chinese names.

    Parameters
    ----------
    as_json
        Print one JSON list instead of a line for each.
    """
    known = known_concepts()
    if as_json:
        say(json.dumps(known, ensure_ascii=False))
        return
    for concept in known:
        say("\t".join((concept["emoji"], ", ".join(concept["en"]), ", ".join(concept["zh"]))))
