"""A small evaluator of ComfyUI's graphs: the value of a node's output, asked for from the saved picture backwards.

A link is [node, output slot]. Whoever asks says what kind of value it wants: so a node that is not known passes on
what it was given of that kind, and is noted. Nodes of numbers and texts stand here too: primitives, strings that are
joined and changed, switches, wildcards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from reverie.errors import ReverieError
from reverie.requests.foreign.draft import shorten
from reverie.requests.pictures import Fill

Weights = tuple[tuple[str, object, object], ...]
"""LoRAs: the node that applies it, the file, the strength."""
T = TypeVar("T")
DEEPEST = 400  # nodes behind each other; a graph that a person made has some dozens


@dataclass(frozen=True)
class Model:
    """A U-Net: the checkpoint's name, the LoRAs and IP-Adapters on the way, and requests' fields that patches set."""

    name: str = ""
    loras: Weights = ()
    seen: tuple[GraphSeen, ...] = ()
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class GraphSeen:
    """An IP-Adapter: the names of its file, its vision tower's and of the picture, a mask, and when and how it acts."""

    model: object
    encoder: object
    picture: object
    mask: GraphMask | None
    weight: object
    start: object = 0
    end: object = 1


@dataclass(frozen=True)
class GraphClip:
    """A text encoder: the LoRAs on the way, and the layer it stops at, counted from the last; None is its usual one."""

    loras: Weights = ()
    layer: object = None


@dataclass(frozen=True)
class GraphControl:
    """A ControlNet that acts: its file's name, that of the picture which it sees unchanged, strength and interval.

    `kind` is what a union is said to see.
    """

    model: object
    picture: object
    strength: object
    start: object = 0
    end: object = 1
    kind: object = None


@dataclass(frozen=True)
class GraphRegion:
    """A prompt of a part of the picture: a mask, or left, top, width and height, in pixels or in fractions."""

    text: str
    strength: object
    mask: GraphMask | None = None
    box: tuple[object, ...] = ()
    in_pixels: bool = False


@dataclass(frozen=True)
class Prompt:
    """A conditioning: its text, its encoder, SDXL's sizes, whether it is zeroed, whose way words are weighed in.

    ControlNets act where it does. `regions` are of parts of the picture, the text of all of it.
    """

    text: str
    clip: GraphClip = GraphClip()
    sizes: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    zeroed: bool = False
    weighed: str = "ComfyUI"
    controls: tuple[GraphControl, ...] = ()
    regions: tuple[GraphRegion, ...] = ()


@dataclass(frozen=True)
class GraphMask:
    """A mask: the name of its picture, which channel it is (of alpha the opposite), by how many pixels it grows."""

    name: object
    channel: object
    grow: object = 0


@dataclass(frozen=True)
class GraphStart:
    """What latents were made of: the name of a picture, None where it is not known, and the mask under it.

    `fill` is what lies within the mask, as `Inpaint` calls it.
    """

    name: object = None
    mask: GraphMask | None = None
    fill: Fill = "original"


@dataclass(frozen=True)
class Latent:
    """Latents: their size in pixels where it is known, how many, what drew them, and what picture is behind.

    `scaled` are the nodes that gave them another size since.
    """

    width: object = None
    height: object = None
    count: object = 1
    drawn: Sampling | None = None
    picture: GraphStart | None = None
    scaled: tuple[Node, ...] = ()


@dataclass(frozen=True)
class GraphPicture:
    """Decoded latents, or a picture that was loaded."""

    latent: Latent


@dataclass(frozen=True)
class Sigmas:
    """The levels of noise: how many steps, the spacing's name, the share that is walked, and if KSampler made them.

    Of the steps those from `first` on are taken, up to `last`, None the last of all. `levels` are given ones.
    """

    steps: object
    schedule: object
    denoise: object = 1
    of_the_sampler: bool = False
    first: object = 0
    last: object = None
    levels: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[int, int, int] | None:
        """Return the first step, the one after the last, and how many there are; None where that is not known."""
        first, steps, last = self.first, self.steps, self.steps if self.last is None else self.last
        if not (isinstance(first, int) and isinstance(last, int) and isinstance(steps, int)):
            return None
        return first, min(last, steps), steps


@dataclass(frozen=True)
class Solver:
    """A sampler by its name, and its eta where it is told."""

    name: object
    eta: object = None


@dataclass(frozen=True)
class Seed:
    """The noise that a seed gives; `added` tells whether it is."""

    seed: object
    added: bool = True


@dataclass(frozen=True)
class Guider:
    """What is asked of the network: model, prompts and guidance."""

    model: Model
    positive: Prompt | None
    negative: Prompt | None
    scale: object


@dataclass(frozen=True)
class Sampling:
    """One sampler's work."""

    node: Node
    guider: Guider
    seed: Seed
    solver: Solver
    sigmas: Sigmas
    start: Latent


class Scalar:
    """Stands for a number, a text or a truth value, where a kind of value is asked for."""


class Node:
    """A node of the graph: its class, its inputs, and those that nobody has read yet."""

    def __init__(self, graph: Graph, name: str, kind: str, inputs: Mapping[str, object]) -> None:
        self.graph, self.name, self.kind = graph, name, kind
        self.inputs = dict(inputs)
        self.unread = dict(inputs)

    def get(self, name: str, want: type[T]) -> T | None:
        """Return an input of a kind: what stands there, or what its link leads to; None where there is none such."""
        self.unread.pop(name, None)
        value = self.graph.follow(self.inputs.get(name), want)
        return value if isinstance(value, want) else None

    def scalar(self, name: str, default: object = None) -> Any:
        """Return an input that is a number, a text or a truth value: `default` if not there, None if not known."""
        self.unread.pop(name, None)
        return self.graph.follow(self.inputs[name], Scalar) if name in self.inputs else default

    def text(self, *names: str) -> str:
        """Return the first of some inputs that is there, as text. Raises ReverieError where it cannot be resolved."""
        name = next((name for name in names if name in self.inputs), names[0])
        value = self.scalar(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = value[0] if len(value) == 1 else None
        if isinstance(value, str | int | float):
            return str(value)
        raise ReverieError(f"the {name} of {self.kind} {self._origin(name)}; the picture cannot be replayed")

    def _origin(self, name: str) -> str:
        source = self.graph.source(self.inputs.get(name))
        return "is not in the graph" if source is None else f"comes from {source.kind}, which is not understood"

    def links(self) -> Iterator[str]:
        """Name the inputs that are links."""
        return (name for name, value in self.inputs.items() if self.graph.source(value) is not None)

    def note(self, text: str = "", *names: str) -> None:
        """Note the node with the values of some inputs, or of all that nobody reads."""
        given = {name: self.scalar(name) for name in names if name in self.inputs}
        settings = ", ".join(f"{name} {shorten(value)}" for name, value in given.items() if value is not None)
        parts = [part for part in (text, settings) if part]
        self.graph.note(f"node {self.kind}" + (f": {'; '.join(parts)}" if parts else ""))


Reader = Callable[[Node, int, type], object]
"""Return what a node's output slot holds, of the kind that is wanted where it may be several."""


class Graph:
    """The nodes of a `prompt` text, the readers of their classes, and what was noted on the way."""

    def __init__(self, data: Mapping[str, object], readers: Mapping[str, Reader], unknown: Reader) -> None:
        self.readers, self.unknown = readers, unknown
        self.nodes = {
            name: Node(self, name, str(node["class_type"]), node["inputs"])
            for name, node in data.items()
            if isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        }
        self.notes: list[str] = []
        self.embeddings: dict[str, None] = {}  # paths of those that prompts name
        self._values: dict[tuple[str, int, type], object] = {}
        self._open: list[tuple[str, int, type]] = []

    def note(self, text: str) -> None:
        """Note a line once."""
        if text not in self.notes:
            self.notes.append(text)

    def source(self, value: object) -> Node | None:
        """Return the node that a link comes from; None where the value is none."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int) and not isinstance(value[1], bool):
            return self.nodes.get(str(value[0]))
        return None

    def follow(self, value: object, want: type) -> object:
        """Return a value that stands in an input itself, or what its link leads to."""
        source = self.source(value)
        if source is None:
            unwrapped = value.get("__value__") if isinstance(value, dict) else value
            return unwrapped if want is Scalar else None
        return self.output(source, value[1], want)  # type: ignore[index]

    def output(self, node: Node, slot: int, want: type) -> object:
        """Return what an output slot of a node holds. Raises ReverieError where the graph leads in a circle."""
        key = (node.name, slot, want)
        if key not in self._values:
            if key in self._open or len(self._open) > DEEPEST:
                raise ReverieError(f"the picture's ComfyUI graph leads in a circle at node {node.name} ({node.kind})")
            self._open.append(key)
            self._values[key] = self.readers.get(node.kind, self.unknown)(node, slot, want)
            self._open.pop()
        return self._values[key]


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
        return Prompt(node.text("populated_text"), node.get("clip", GraphClip) or GraphClip())
    return node.get("model" if want is Model else "clip", want)


# Readers of numbers and texts, each with the names of its classes.
KNOWN: tuple[tuple[Reader, str], ...] = (
    (
        value_of("value", "int", "float", "string", "Number", "Value"),
        "PrimitiveInt, PrimitiveFloat, PrimitiveString, PrimitiveStringMultiline, PrimitiveBoolean, PrimitiveNode, "
        "Int, INTConstant, FloatConstant, Float, ImpactInt, ImpactFloat, ImpactBoolean, String, easy int, easy float, "
        "easy string, CR Integer, CR Float, JWInteger, JWFloat, FloatSlider",
    ),
    (
        value_of("text", "string", "prompt", "Text", "value", "positive", "negative"),
        "String Literal, StringConstant, StringConstantMultiline, Text Multiline, CR Text, CR Prompt Text, ttN text, "
        "JWString, JWStringMultiline, ImpactString, Text box, TextBox, Simple String, Textbox, Text String, "
        "easy positive, easy negative, CR Multiline Text, Text, DF_Text, StringInput",
    ),
    (
        value_of("text", "source", "anything"),
        "ShowText|pysssss, PreviewAny, easy showAnything, Display Any (rgthree), ShowAnything, Text to Console",
    ),
    (
        value_of("seed", "value"),
        "Seed (rgthree), easy seed, CR Seed, Seed, Seed Generator, SeedEverywhere, RandomSeed",
    ),
    (join_texts(r"string_[a-z]", "delimiter", ""), "StringConcatenate"),
    (join_texts(r"text_[a-z]", "delimiter", ", "), "Text Concatenate"),
    (join_texts(r"text\d", "separator", ""), "CR Text Concatenate"),
    (join_texts(r"string_?\d+", "delimiter", " "), "JoinStrings, JoinStringMulti"),
    (replace_text, "StringReplace"),
    (trim_text, "StringTrim"),
    (cut_text, "StringSubstring"),
    (change_case, "CaseConverter"),
    (read_wildcard, "ImpactWildcardProcessor, ImpactWildcardEncode"),
    (reroute, "Reroute, Reroute (rgthree), ReroutePrimitive|pysssss"),
    (first_given, "Any Switch (rgthree)"),
)
