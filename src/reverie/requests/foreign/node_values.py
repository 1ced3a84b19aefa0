"""ComfyUI's nodes of numbers and texts: primitives, strings that are joined and changed, switches, wildcards."""

from __future__ import annotations

import re

from reverie.requests.foreign.graph import Clip, Model, Node, Prompt, Reader, Scalar


def value_of(*names: str) -> Reader:
    """Read the first of some inputs that is there, whatever it is."""

    def read(node: Node, slot: int, want: type) -> object:
        name = next((name for name in names if name in node.inputs), names[0])
        return node.scalar(name) if want is Scalar else node.get(name, want)

    return read


def join_texts(pattern: str, separator: str, default: str) -> Reader:
    """Join the texts of the inputs whose names match a pattern, in the order of their names."""

    def read(node: Node, slot: int, want: type) -> object:
        between = (node.text(separator) if separator in node.inputs else default).replace("\\n", "\n")
        names = sorted(name for name in node.inputs if re.fullmatch(pattern, name))
        texts = [node.text(name) for name in names if node.inputs[name] not in (None, "undefined")]
        return between.join(text for text in texts if text or default == "")

    return read


def replace_text(node: Node, slot: int, want: type) -> object:
    return node.text("string").replace(node.text("find"), node.text("replace"))


def trim_text(node: Node, slot: int, want: type) -> object:
    sides = {"Left": str.lstrip, "Right": str.rstrip}
    return sides.get(str(node.scalar("mode", "Both")), str.strip)(node.text("string"))


def change_case(node: Node, slot: int, want: type) -> object:
    cases = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize, "Title Case": str.title}
    return cases.get(str(node.scalar("mode")), str)(node.text("string"))


def cut_text(node: Node, slot: int, want: type) -> object:
    return node.text("string")[int(node.scalar("start", 0)) : int(node.scalar("end", 0))]


def first_given(node: Node, slot: int, want: type) -> object:
    """Read a switch that takes its first input with something in it."""
    for name in sorted(node.inputs):
        value = node.scalar(name) if want is Scalar else node.get(name, want)
        if value is not None:
            return value
    return None


def reroute(node: Node, slot: int, want: type) -> object:
    """Pass on the only input."""
    name = next(iter(node.inputs), "")
    return node.scalar(name) if want is Scalar else node.get(name, want)


def read_wildcard(node: Node, slot: int, want: type) -> object:
    """Read Impact Pack's wildcards, which keep what they became."""
    if want is Scalar:
        return node.text("populated_text")
    if want is Prompt:
        return Prompt(node.text("populated_text"), node.get("clip", Clip) or Clip())
    return node.get("model" if want is Model else "clip", want)
