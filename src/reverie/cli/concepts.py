"""`reverie concepts`: what does the bundled model know?"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TypedDict

from reverie.cli.options import Json
from reverie.cli.output import say
from reverie.errors import ReverieError


class Concept(TypedDict):
    """Name one thing that the bundled model can draw, in all the words that it was taught."""

    emoji: str
    en: list[str]
    zh: list[str]


def known_concepts() -> list[Concept]:
    """Read what the bundled model was trained on. Raises ReverieError where the package came without its models."""
    source = files("reverie") / "assets" / "bundled" / "concepts.json"
    try:
        known: list[Concept] = json.loads(source.read_text(encoding="utf-8"))
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
