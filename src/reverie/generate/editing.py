"""Prompt editing, `[from:to:when]`, and alternation, `[a|b]`: the words of a prompt at each step.

The grammar and the counting are those of AUTOMATIC1111/stable-diffusion-webui 1.10, modules/prompt_parser.py: brackets
that do not fit it are text, and so is the whole prompt where a `|` stands outside of an alternation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from reverie.generate import prompt
from reverie.requests.adapter_files import extract

NESTING = 50  # deeper edits than anyone writes are text

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
    ends = [schedule(part.text, steps)[-1].text for part in prompt.parts(extract(text).text) if part.weight > 0]
    sections = ["".join(piece.text for piece in pieces) for end in ends for pieces in prompt.weigh(end)]
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
    if group.depth >= NESTING:
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
