"""The prompt syntax of AUTOMATIC1111: AND, BREAK, weights, and editing by step: `[from:to:when]` and `[a|b]`.

Nothing here is an error: what does not follow the syntax is text, as it is there, and so is the whole prompt where a
`|` stands outside of an alternation. Its order is kept too: tags are taken out first (`requests.adapter_files`), then
AND splits, then `schedule` chooses the words of each step, then brackets weigh. The facts are those of
AUTOMATIC1111/stable-diffusion-webui 1.10: modules/prompt_parser.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from reverie.requests.adapter_files import extract

ROUND, SQUARE = 1.1, 1 / 1.1  # what a pair of round or square brackets multiplies the weight by
NESTING = 100  # brackets deeper than anyone writes weigh nothing, which bounds the time that weighing takes

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))$")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
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
            for index, words in enumerate(BREAK.split(token)):
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


EDIT_NESTING = 50  # deeper edits than anyone writes are text

_TOKEN = re.compile(r"[()\[\]:|]|(?:[^\\()\[\]:|]|\\.)+|\\")
_WHEN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_CLOSING = {")": "(", "]": "["}


class Stage(NamedTuple):
    """Hold the text of a prompt up to and including the step `until`, counted from 1."""

    until: int
    text: str


@dataclass(frozen=True)
class Edit:
    """Go from one text to another after the step or the fraction of the steps that `when` writes."""

    before: Text
    after: Text
    when: str


@dataclass(frozen=True)
class Alternation:
    """Take another text at every step, in turn."""

    texts: tuple[Text, ...]


Text = list["str | Edit | Alternation"]


@dataclass
class _Group:
    """Gather what follows an opening bracket; `fields` are what its colons or bars separate."""

    bracket: str
    fields: list[Text] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    depth: int = 0  # of the edits and alternations in it

    def literal(self) -> Text:
        """Return the group as text, with the edits in it."""
        text: Text = [self.bracket, *self.fields[0]]
        for separator, part in zip(self.separators, self.fields[1:], strict=True):
            text += [separator, *part]
        return text


def schedule(text: str, steps: int, after: int | None = None) -> tuple[Stage, ...]:
    """Return the stages of a prompt over `steps` steps.

    A `when` with a decimal point is a fraction of the steps, else a step. `after` counts the steps of a first pass (the
    hires fix): then fractions count on from 1, steps from `after`.
    """
    root = _parse(text)
    ends = {steps}
    for node in _nodes(root):
        if isinstance(node, Alternation):
            ends.update(range(1, steps + 1))
        else:
            ends.add(_step(node.when, steps, after))
    return tuple(Stage(end, "".join(_at(root, end, steps, after))) for end in sorted(ends) if end >= 1)


def final_words(text: str, steps: int) -> str:
    """Return the words that a prompt ends with, bare of weights, brackets and tags; parts that repel are left out."""
    ends = [schedule(part.text, steps)[-1].text for part in parts(extract(text).text) if part.weight > 0]
    sections = ["".join(piece.text for piece in pieces) for end in ends for pieces in weigh(end)]
    return " ".join(" ".join(sections).split())


def _step(when: str, steps: int, after: int | None) -> int:
    fraction = "." in when
    number = (float(when) - (after is not None)) * steps if fraction else float(when) - (after or 0)
    return int(max(-1.0, min(float(steps), number)))


def _at(text: Text, step: int, steps: int, after: int | None) -> Iterator[str]:
    """Yield the words that a text has at a step."""
    for node in text:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Alternation):
            yield from _at(node.texts[(step - 1) % len(node.texts)], step, steps, after)
        else:
            yield from _at(node.before if step <= _step(node.when, steps, after) else node.after, step, steps, after)


def _nodes(text: Text) -> Iterator[Edit | Alternation]:
    """Yield the edits and alternations of a text, nested ones too."""
    for node in text:
        if isinstance(node, str):
            continue
        yield node
        for inner in node.texts if isinstance(node, Alternation) else (node.before, node.after):
            yield from _nodes(inner)


def _parse(text: str) -> Text:
    """Read a text in one pass; `open_groups[0]` is the text outside of all brackets, where any bracket is text."""
    open_groups = [_Group("")]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\\":
            return [text]  # a backslash with nothing to protect
        if token in "([":
            open_groups.append(_Group(token))
        elif token in _CLOSING:
            _close(open_groups, token)
        elif token in ":|" and len(open_groups) > 1:
            _separate(open_groups, token)
        else:
            open_groups[-1].fields[-1].append(token)
    _give_up(open_groups)
    return [text] if "|" in open_groups[0].fields[0] else open_groups[0].fields[0]


def _separate(open_groups: list[_Group], token: str) -> None:
    """Begin another field; round brackets have at most two, and no bars."""
    group = open_groups[-1]
    if group.bracket == "(" and (token == "|" or group.separators):
        _give_up(open_groups)
        open_groups[0].fields[0].append(token)
        return
    group.separators.append(token)
    group.fields.append([])


def _close(open_groups: list[_Group], token: str) -> None:
    """End the innermost group, or give all up where the bracket does not fit it."""
    group = open_groups[-1]
    node = _node(group) if group.bracket == _CLOSING[token] else None
    if node is None:
        _give_up(open_groups)
        open_groups[0].fields[0].append(token)
        return
    open_groups.pop()
    outer = open_groups[-1]
    edits = isinstance(node[0], Edit | Alternation)
    outer.depth = max(outer.depth, group.depth + edits)
    outer.fields[-1] += node


def _node(group: _Group) -> Text | None:
    """Return what a closed group stands for; None where it follows no rule."""
    kinds = set(group.separators)
    if group.bracket == "(":
        return [*group.literal(), ")"]
    if not kinds:
        return [*group.literal(), "]"]
    if group.depth >= EDIT_NESTING:
        return None
    if kinds == {"|"}:
        return [Alternation(tuple(group.fields))]
    *texts, last = group.fields
    words = [node for node in last if isinstance(node, str)]
    when = _WHEN.fullmatch("".join(words)) if len(words) == len(last) else None
    if when is None or kinds != {":"} or len(texts) > 2:
        return None
    return [Edit(texts[0] if len(texts) == 2 else [], texts[-1], when[1])]


def _give_up(open_groups: list[_Group]) -> None:
    """Turn every open group into text of the outermost one, keeping the edits that they hold."""
    root = open_groups[0]
    for group in open_groups[1:]:
        root.fields[0] += group.literal()
    del open_groups[1:]
