"""`reverie data` and `reverie concepts`: training data written to disk, and what the bundled model knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cyclopts import App

from reverie.cli.options import Json, Output, Whole, say
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


class ConceptRow(TypedDict, total=False):
    """Name one thing that a model can draw, or an instrument, a style, a tempo or a word that it can play."""

    kind: str
    emoji: str
    en: list[str]
    zh: list[str]


def known_concepts(model: str | None = None) -> list[ConceptRow]:
    """Read what a model was trained on. Raises ReverieError where it does not say, and where there is no model."""
    from reverie.requests.references import BUNDLED, BUNDLED_NAME, locate_model, locate_part

    folder = locate_model(model or BUNDLED_NAME)
    if model is not None and not folder.exists():
        raise ReverieError(f"no model at '{model}'; give a folder, or one of {', '.join(BUNDLED)}")
    file = locate_part(folder, "concepts.json")
    try:
        known: list[ConceptRow] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        if model is None:
            raise ReverieError("this installation holds no bundled model; train one with `reverie train`") from error
        raise ReverieError(f"'{model}' does not say what it knows: it has no concepts.json") from error
    except ValueError as error:
        raise ReverieError(f"'{file}' is no list of concepts; remove or repair it") from error
    return known


def concepts(*, model: str | None = None, as_json: Json = False) -> None:
    """List what a model knows, in English and Chinese: emoji that it was trained on, or instruments, styles, tempos.

    Parameters
    ----------
    model
        A model's folder, or reverie-music; the bundled model of pictures if not given.
    as_json
        Print one JSON list instead of a line for each.
    """
    known = known_concepts(model)
    if as_json:
        say(json.dumps(known, ensure_ascii=False))
        return
    for concept in known:
        first = concept.get("emoji") or concept.get("kind") or ""
        say("\t".join((first, ", ".join(concept["en"]), ", ".join(concept["zh"]))))
