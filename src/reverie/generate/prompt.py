"""The prompt syntax of AUTOMATIC1111: parts joined by AND, weighted pieces between BREAKs.

Nothing here is an error: what does not follow the syntax is text, as it is there. Its order is kept too: tags are taken
out first (`requests.adapter_files`), then AND splits, then `editing.schedule` chooses the words of each step, then
brackets weigh. The facts are those of AUTOMATIC1111/stable-diffusion-webui 1.10: modules/prompt_parser.py.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

ROUND, SQUARE = 1.1, 1 / 1.1  # what a pair of round or square brackets multiplies the weight by
NESTING = 100  # brackets deeper than anyone writes weigh nothing, which bounds the time that weighing takes

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))$")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_ATTENTION = re.compile(rf"\\[()\[\]\\]?|[()\[\]]|:\s*({_NUMBER})\s*\)|[^\\()\[\]:]+|:")


class Part(NamedTuple):
    """Hold one of the prompts that AND joins, and how strongly it guides."""

    text: str
    weight: float


class Piece(NamedTuple):
    """Hold a stretch of text whose tokens all have one weight."""

    text: str
    weight: float


def parts(prompt: str) -> tuple[Part, ...]:
    """Split a prompt at AND; a number after a colon at the end of a part, `: 1.2`, is its weight."""
    return tuple(_part(text) for text in _AND.split(prompt))


def _part(text: str) -> Part:
    text = text.rstrip()
    found = _PART_WEIGHT.search(text)
    return Part(text[: found.start()].rstrip(), float(found[1])) if found else Part(text, 1.0)


def weigh(text: str) -> tuple[tuple[Piece, ...], ...]:
    r"""Return the weighted pieces of each of the sections that BREAK separates.

    `(a)` weighs 1.1, `(a:1.3)` weighs 1.3, `[a]` weighs 1 / 1.1, and nested brackets multiply; `\(` is a bracket of the
    text. A bracket that is never closed reaches to the end; one that was never opened is text.
    """
    found: list[tuple[str | None, float]] = []  # None is a BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        start = opened[kind].pop()
        if len(opened["("]) + len(opened["["]) < NESTING:
            found[start:] = [(piece, weight * factor) for piece, weight in found[start:]]

    for match in _ATTENTION.finditer(text):
        token, number = match[0], match[1]
        if token.startswith("\\"):
            found.append((token[1:], 1.0))
        elif token in opened:
            opened[token].append(len(found))
        elif token.endswith(")") and opened["("]:
            close("(", ROUND if number is None else float(number))
        elif token == "]" and opened["["]:
            close("[", SQUARE)
        else:
            for index, words in enumerate(_BREAK.split(token)):
                found += [(None, 1.0)] * (index > 0) + [(words, 1.0)]
    for kind, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[kind]:
            close(kind, factor)
    return _sections(found)


def _sections(found: list[tuple[str | None, float]]) -> tuple[tuple[Piece, ...], ...]:
    """Cut at every BREAK and join neighbours of one weight, whose words may then be one token."""
    sections: list[list[Piece]] = [[]]
    for text, weight in found:
        if text is None:
            sections.append([])
        else:
            sections[-1].append(Piece(text, weight))
    return tuple(
        tuple(
            Piece("".join(piece.text for piece in run), weight) for weight, run in groupby(section, lambda p: p.weight)
        )
        for section in sections
    )
