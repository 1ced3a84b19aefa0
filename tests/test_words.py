"""The names and docstrings of the source: statements, one class a name, verbs and nouns, and few small modules.

The reach of a module is all modules of reverie that it can come to import, read from the syntax trees.

`python tests/test_words.py [module]` lists them. Imports inside functions and under TYPE_CHECKING count, and so do
packages above what is imported, and modules named by `from package import module`. (By the modules after `from`
alone, the reach of `reverie.cli.image` was 146 in commit 8386c4e; with those named by `import`, 183.)
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reverie"

SHARED_NAMES: set[str] = set()
REACH = 148  # modules and packages of reverie that `reverie image` can come to import, two for each kind of adapter
SMALL, SMALL_MODULES = 60, 5
PARTICIPLES = {"resampled", "normalised", "unclipped", "carried"}  # public: of reverie.Sound and reverie.video

IRREGULAR = frozenset(
    [
        "kept",
        "told",
        "made",
        "drawn",
        "held",
        "found",
        "given",
        "known",
        "shown",
        "seen",
        "said",
        "laid",
        "sent",
        "heard",
        "taken",
        "chosen",
        "spoken",
        "written",
        "gone",
        "done",
        "built",
        "bound",
        "brought",
        "caught",
        "dealt",
        "felt",
        "fed",
        "hidden",
        "led",
        "lent",
        "lost",
        "meant",
        "met",
        "paid",
        "sold",
        "sung",
        "sunk",
        "sat",
        "slept",
        "spent",
        "struck",
        "taught",
        "thought",
        "torn",
        "worn",
        "won",
        "begun",
        "broken",
        "grown",
        "thrown",
        "undone",
        "understood",
        "woven",
        "swept",
    ]
)
NOUNS = {"seed", "feed", "need", "embed", "speed", "heed"}  # end in "ed" and are no participles
AFTER = frozenset(
    [
        "by",
        "in",
        "of",
        "to",
        "over",
        "out",
        "up",
        "as",
        "on",
        "with",
        "from",
        "at",
        "for",
        "beside",
        "through",
        "down",
        "anew",
        "again",
        "apart",
        "away",
        "back",
    ]
)

PATHS = sorted(SOURCE.rglob("*.py"))


@cache
def modules() -> dict[str, Path]:
    """Return the file of every module and package, by its dotted name."""
    named = {}
    for path in SOURCE.rglob("*.py"):
        parts = ("reverie", *path.relative_to(SOURCE).with_suffix("").parts)
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


@cache
def imported(name: str) -> frozenset[str]:
    """Return the modules and packages that a module names in its imports, wherever they stand."""
    path, names = modules()[name], set()
    package = ("reverie", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names & modules().keys())


def reach(start: str) -> set[str]:
    """Return all that a module can come to import, itself and the packages above included."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imported(name)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


def is_participle(name: str) -> bool:
    """Tell whether a function is named by a participle alone, such as `kept` or `laid_out`."""
    first, *rest = name.strip("_").split("_")
    return (first in IRREGULAR or (first.endswith("ed") and first not in NOUNS)) and AFTER.issuperset(rest)


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not any("property" in ast.unparse(d) for d in node.decorator_list):
            yield node


def test_participles_are_found() -> None:
    assert all(map(is_participle, ("kept", "_joined", "laid_out", "handed_over", "rounded")))
    assert not any(map(is_participle, ("embed", "keep", "pack_linear", "noise_levels", "drawn_pixels", "seed")))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_module_states_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    first = (ast.get_docstring(tree) or "").split("\n\n")[0]
    assert first or not tree.body
    assert "?" not in first.replace("`", "")
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    assert "told" not in names
    assert "told" not in [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]


def test_functions_are_named_by_verbs_and_nouns() -> None:
    assert {f.name for path in PATHS for f in functions(path) if is_participle(f.name)} <= PARTICIPLES


def test_a_class_name_stands_for_one_class() -> None:
    places = defaultdict(set)
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(path)
    assert {name for name, paths in places.items() if len(paths) > 1} <= SHARED_NAMES


def test_what_drawing_a_picture_reaches_stays_small() -> None:
    assert len(reach("reverie.cli.image")) <= REACH


def test_small_modules_have_several_importers() -> None:
    importers = defaultdict(set)
    for name in modules():
        for other in imported(name):
            importers[other].add(name)
    small = [
        name
        for name, path in modules().items()
        if path.name != "__init__.py"
        and len(path.read_text(encoding="utf-8").splitlines()) < SMALL
        and len(importers[name]) <= 1
    ]
    assert len(small) <= SMALL_MODULES, small


if __name__ == "__main__":
    found = sorted(reach(sys.argv[1] if len(sys.argv) > 1 else "reverie.cli.image"))
    sys.stdout.write("\n".join([*found, f"{len(found)} modules"]) + "\n")
