"""What a model was taught: the things it can draw, by all the words for them, from `concepts.json` beside its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from reverie.errors import ReverieError

CONCEPTS = "concepts.json"  # diffusers does not know it


@dataclass(frozen=True)
class Known:
    """Name one thing that a model can draw: its English and Chinese names, and words that have to do with it."""

    emoji: str
    en: tuple[str, ...]
    zh: tuple[str, ...]
    keywords: tuple[str, ...] = ()


def read_known(folder: Path) -> tuple[Known, ...]:
    """Read what a model knows; nothing where its folder does not say. Raises ReverieError where that is damaged."""
    file = folder / CONCEPTS
    if not file.is_file():
        return ()
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return tuple(
            Known(one["emoji"], tuple(one["en"]), tuple(one["zh"]), tuple(one.get("keywords", ()))) for one in listed
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ReverieError(f"{file} is no list of concepts with emoji, en and zh; remove or repair it") from error
