"""Templates of prompts, and styles: `{a|b}` and `__animals__` stand for one of several texts, by each picture's seed.

The syntax is that of A1111's extension "dynamic prompts" (adieyal/sd-dynamic-prompts) and its library, whose random
generator this is to the draw: a seed gives the prompt that it gives there (but where several are taken of options
with weights, where that library gives a weight to another option).

    {a|b|c}             one of them
    {3::a|b}            a three times as often as b
    {2$$a|b|c}          two of them, with a comma between; {1-2$$ and $$a|b|c} one or two, with " and " between
    __animals__         a line of animals.txt in a folder of wildcards; also __*/birds__ and __**/birds__
    ${c={red|blue}}     what ${c} stands for from here on, drawn at each use; ${c=!{red|blue}} is drawn once
    ${c:green}          green, where nothing was said of c
    # ...               nothing, to the end of the line

What is drawn may be a template itself. A weight of the prompt's own, `(a:1.2)`, and A1111's `[a|b]` stay as they are.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from random import Random

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.requests.base import Frozen
from reverie.requests.pictures import TextToImage

NESTING = 50  # templates in templates; wildcards that name each other would go on for ever
MOST_DRAWS = 10_000  # of one template; each of 50 variables that names the one before twice would be 2^50

_COMMENT = re.compile(r"#[^\n]*")
_BOUNDS = re.compile(r"\s*(?:(\d{1,9})?(-)?(\d{1,9})?)\$\$(?:([^${}]+)\$\$)?")
_WEIGHT = re.compile(r"\s*([+-]?\d{1,9}(?:\.\d*)?|[+-]?\.\d+)::")
_SPACE = re.compile(r"\s+")
_METHOD = re.compile(r"\s*([~!@])")
_SETTING = re.compile(r"\$\{\s*([A-Za-z_-][\w-]*)\s*(\?)?=(!)?\s*")
_USE = re.compile(r"\$\{\s*([A-Za-z_-][\w-]*)\s*(:)?\s*")
_TEXT = re.compile(r"(?:(?!__)[^{}|$#])+|\$|_")


@dataclass(frozen=True)
class Choice:
    """Take `low` to `high` of the options, each at most once, and join them by `separator`."""

    options: tuple[Template, ...]
    weights: tuple[float, ...]
    low: int = 1
    high: int = 1
    separator: str = ","


@dataclass(frozen=True)
class Wildcard:
    """Take a line of the files of a name."""

    name: Template


@dataclass(frozen=True)
class Definition:
    """Say what a variable stands for: `once` draws it now, `keep` leaves one that is there."""

    name: str
    value: Template
    keep: bool
    once: bool


@dataclass(frozen=True)
class Use:
    """Take what a variable stands for, or else `otherwise`."""

    name: str
    otherwise: Template | None


Template = tuple["str | Choice | Wildcard | Definition | Use", ...]


class Wildcards:
    """The wildcards of a folder: the lines of its .txt files by their path in it, without the suffix."""

    def __init__(self, folder: Path | None) -> None:
        """Find the files. Raises ReverieError where there is no such folder."""
        if folder is not None and not folder.is_dir():
            raise ReverieError(f"no folder of wildcards '{folder}'; give one that holds .txt files")
        self.folder, self.files = folder, {} if folder is None else _files(folder)
        self.lines = cache(self._read)

    def _read(self, name: str) -> tuple[str, ...]:
        """Return the lines of all files whose names fit a pattern, sorted, each once. Raises ReverieError for none.

        Where none fits, those of that name in any folder below do.
        """
        pattern = re.sub(r"[\\/]+", "/", name).strip("/")
        found = self._matches(pattern) or self._matches(f"**/{pattern}")
        lines = {line.strip() for path in found for line in _text(path).splitlines()}
        if not (kept := sorted(line for line in lines if line and not line.startswith("#"))):
            where = "give the folder of its file with `wildcards`"
            if self.folder is not None:
                where = f"'{self.folder}' has {', '.join(sorted(self.files)) or 'no .txt files'}"
            raise ReverieError(f"no wildcard '__{name}__'; {where}", field="wildcards")
        return tuple(kept)

    def _matches(self, pattern: str) -> list[Path]:
        return [path for name, path in self.files.items() if fnmatch(name, pattern)]


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in sorted(names) if name.endswith(".txt")):
            found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="ignore")
    except OSError as error:
        raise ReverieError(f"cannot read '{path}': {reason_of(error)}") from error


@lru_cache(maxsize=4096)
def parse(template: str) -> Template:
    """Read a template. Raises ReverieError for a brace that is not closed, and for what only that library draws."""
    try:
        return _Parser(template).sequence("")
    except RecursionError:
        raise ReverieError("the template is nested too deep; write it with fewer braces", field="prompt") from None


class _Parser:
    """Read a template from `place` on."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def sequence(self, ends: str, *, within: bool = False) -> Template:
        """Read up to one of the `ends`, or to the end of the text; `within` a wildcard's name, to its underscores."""
        nodes: list[str | Choice | Wildcard | Definition | Use] = []
        while self.place < len(self.text):
            rest = self.text[self.place]
            if rest in ends or (within and self.at("__")):
                break
            if self.take(_COMMENT):
                continue
            if self.at("%{"):
                raise self.error("%{ } is not read; write what it wraps")
            if found := self.take(_SETTING):
                value = self.close(self.sequence("}"), found[0])
                nodes.append(Definition(found[1], value, found[2] is not None, found[3] is not None))
            elif found := self.take(_USE):
                value = self.close(self.sequence("}"), found[0])
                nodes.append(Use(found[1], value if found[2] else None))
            elif rest == "{":
                nodes.append(self.choice())
            elif self.at("__"):
                nodes.append(self.wildcard())
            elif found := self.take(_TEXT):
                nodes.append(found[0])
            else:  # a bar or a closing brace that closes nothing
                nodes.append(rest)
                self.place += 1
        return tuple(nodes)

    def choice(self) -> Choice:
        start = self.place
        self.place += 1
        if (method := self.take(_METHOD)) and method[1] != "~":
            raise self.error(f"'{method[1]}' asks for each in turn; leave it out: each picture draws by its seed")
        bounds = self.take(_BOUNDS)
        options, weights = [], []
        while True:
            weight = self.take(_WEIGHT)
            weights.append(float(weight[1]) if weight else 1.0)
            if weight is None:
                self.take(_SPACE)
            options.append(self.sequence("|}"))
            if self.place == len(self.text):
                raise self.error(f"'{self.text[start:]}' is not closed; write }} behind it")
            self.place += 1
            if self.text[self.place - 1] == "}":
                break
        if min(weights) < 0 or not any(weights):
            raise self.error(f"'{self.text[start : self.place]}' weighs nothing; give weights above 0")
        if bounds is None:
            return Choice(tuple(options), tuple(weights))
        low, to, high, separator = bounds.groups()
        first = int(low or (1 if to else high or 1))
        last = int(high or (len(options) if to else first))
        least, most = sorted((first, last))
        return Choice(tuple(options), tuple(weights), least, most, separator or ",")

    def wildcard(self) -> str | Wildcard:
        """Read __name__; underscores that nothing closes are text."""
        start = self.place
        self.place += 2
        name = self.sequence("|}\n", within=True)
        if not name or not self.at("__"):
            self.place = start + 2
            return "__"
        self.place += 2
        return Wildcard(name)

    def close(self, found: Template, opening: str) -> Template:
        if not self.at("}"):
            raise self.error(f"'{opening}' is not closed; write }} behind it")
        self.place += 1
        return found

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        if found := pattern.match(self.text, self.place):
            self.place = found.end()
        return found

    def at(self, text: str) -> bool:
        return self.text.startswith(text, self.place)

    def error(self, message: str) -> ReverieError:
        return ReverieError(f"template {self.text!r}: {message}", field="prompt")


def expand(template: str, seed: int, wildcards: Wildcards) -> str:
    """Return the prompt that a template gives for a seed. Raises ReverieError for one that cannot be read."""
    return _draw(parse(template), Random(seed), wildcards, {}, 0, count())


def _draw(
    nodes: Template, rng: Random, wildcards: Wildcards, known: Mapping[str, Template], depth: int, draws: Iterator[int]
) -> str:
    if depth > NESTING:
        raise ReverieError("the template names itself; take one of its wildcards or variables out", field="prompt")
    if next(draws) > MOST_DRAWS:
        raise ReverieError(f"the template draws more than {MOST_DRAWS} times; write a shorter one", field="prompt")

    def draw(nodes: Template) -> str:
        return _draw(nodes, rng, wildcards, known, depth + 1, draws)

    for node in nodes:
        if isinstance(node, Definition) and not (node.keep and node.name in known):
            known = {**known, node.name: (draw(node.value),) if node.once else node.value}
    drawn = []
    for node in nodes:
        if isinstance(node, str):
            drawn.append(node)
        elif isinstance(node, Choice):
            drawn.append(_choose(node, rng, draw, wildcards))
        elif isinstance(node, Wildcard):
            drawn.append(draw(parse(rng.choice(wildcards.lines(draw(node.name))))))
        elif isinstance(node, Use):
            value = known.get(node.name, node.otherwise)
            if value is None:
                raise ReverieError(f"nothing says what ${{{node.name}}} stands for; write ${{{node.name}=...}} before")
            drawn.append(draw(value))
    return "".join(drawn)


def _choose(node: Choice, rng: Random, draw: Callable[[Template], str], wildcards: Wildcards) -> str:
    """Draw a choice; where a wildcard is its only option, of the wildcard's lines."""
    options, weights = list(node.options), list(node.weights)
    if len(options) == 1 and len(options[0]) == 1 and isinstance(only := options[0][0], Wildcard):
        options = [parse(line) for line in wildcards.lines(draw(only.name))]
        weights = [1.0] * len(options)
    if len(options) == 1:
        return draw(options[0])
    chosen = []
    for _ in range(rng.randint(min(node.low, len(options)), min(node.high, len(options)))):
        if not any(weights):
            break
        chosen += rng.choices(options, weights)
        index = options.index(chosen[-1])
        del options[index], weights[index]
    drawn = [draw(option) for option in chosen]
    if len(drawn) == 1:
        return drawn[0]
    return node.separator.join(drawn).removeprefix(node.separator).removesuffix(node.separator)


def draw_prompts(request: TextToImage, wildcards: Wildcards) -> tuple[TextToImage, ...]:
    """Return a request for each picture of one whose prompts are templates, drawn by the picture's own seed.

    The templates stay beside the prompts that they gave; a request without any stays one. Raises ReverieError for a
    template that cannot be read.
    """
    drawn = tuple(_draw_prompt(request.only(index), wildcards) for index in range(request.count))
    whole = all(not (one.template or one.negative_template) and one.regions == request.regions for one in drawn)
    return (request,) if whole else drawn


def _draw_prompt(request: TextToImage, wildcards: Wildcards) -> TextToImage:
    prompt, negative = (expand(text, request.seed, wildcards) for text in (request.prompt, request.negative))
    return request.replace(
        prompt=prompt,
        negative=negative,
        regions=tuple(one.with_words(lambda text: expand(text, request.seed, wildcards)) for one in request.regions),
        template=request.prompt if prompt != request.prompt else "",
        negative_template=request.negative if negative != request.negative else "",
    )


class PromptStyle(Frozen):
    """Words that go with a prompt and a negative prompt: around it where they say `{prompt}`, else behind it."""

    prompt: str = ""
    negative: str = ""


def read_styles(file: Path) -> dict[str, PromptStyle]:
    """Read A1111's styles.csv by name: columns name, prompt (in old files text) and negative_prompt.

    Raises ReverieError for a file that cannot be read, or has no such columns.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as rows:
            read = list(csv.DictReader(rows))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReverieError(f"cannot read '{file}': {reason_of(error)}", field="styles") from error
    if any("name" not in row or not row.keys() & {"prompt", "text"} for row in read):
        raise ReverieError(f"'{file}' holds no styles; its first line is name,prompt,negative_prompt", field="styles")
    return {
        row["name"]: PromptStyle(
            prompt=row.get("prompt") or row.get("text") or "", negative=row.get("negative_prompt") or ""
        )
        for row in read
        if row["name"]
    }


def add_styles(
    styles: Iterable[str | PromptStyle], known: Mapping[str, PromptStyle], prompt: str, negative: str
) -> dict[str, str]:
    """Return `prompt` and `negative` with styles, given or named, as A1111 merges them (modules/styles.py).

    Raises ReverieError for a name that is not known.
    """
    for given in styles:
        if isinstance(given, str) and given not in known:
            raise ReverieError(f"no style '{given}'; there is {', '.join(known) or 'none'}", field="style")
        style = known[given] if isinstance(given, str) else given
        prompt, negative = _merge(style.prompt, prompt), _merge(style.negative, negative)
    return {"prompt": prompt, "negative": negative}


def _merge(words: str, prompt: str) -> str:
    if "{prompt}" in words:
        return words.replace("{prompt}", prompt)
    return ", ".join(filter(None, (prompt.strip(), words.strip())))
