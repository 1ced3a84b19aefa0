"""Does every module import only what stands to its left? The layers, read from the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reverie"
LAYERS = (
    {"errors", "progress"},
    {"files"},
    {"media"},  # files of pictures, films and sound
    {"requests"},  # what can be asked for, without torch
    {"models", "diffusion", "tokenizer", "data", "sound"},
    {"codecs", "checkpoints", "runtime"},
    {"system"},
    {"adapters"},  # put something into a system and take it out again
    {"generate"},
    {"animation", "similarity"},
    {"music"},  # its films follow animation's paths
    {"pipeline", "video", "client"},  # what a loaded model, here or on a server, can be asked for
    {"jobs"},  # from a request to finished files
    {"corpora"},
    {"train"},  # draws its contact sheets with generate
    {"server"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# The tests use the first two as oracles, which break once the others are installed beside the CPU build of torch.
NEVER = {"diffusers", "transformers", "torchvision", "torchaudio"}

MODULES = sorted(SOURCE.rglob("*.py"))
IDS = [str(path.relative_to(SOURCE)) for path in MODULES]


def room_of(path: Path) -> str:
    """Name the package or the module, directly below reverie, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Name every module that a file imports, inside functions and TYPE_CHECKING too, as absolute dotted paths."""
    package = ("reverie", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """Name the rooms of reverie that a file imports from; "" is the package itself."""
    parts = [name.split(".") for name in imports(path)]
    return {part[1] if part[1] in LEVEL else "" for part in parts if part[0] == "reverie" and len(part) > 1}


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_go_left(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return  # the public names come from everywhere, and the command is whole
    assert room in LEVEL, f"'{room}' stands in no layer: add it to LAYERS and to docs/architecture.md"
    for other in rooms_imported(path) - {room}:
        if other == "":
            assert room in LAYERS[-1], f"{room} imports the public package; import the module that is meant"
        else:
            assert LEVEL[other] < LEVEL[room], f"{room} imports {other}, which does not stand to its left"


def is_there(name: str) -> bool:
    """Tell whether a dotted name is a module, or something in one."""
    parent, _, last = name.rpartition(".")
    if not parent:
        return find_spec(name) is not None
    if not is_there(parent):
        return False
    if getattr(import_module(parent), "__path__", None) and find_spec(name):
        return True
    return hasattr(import_module(parent), last)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_import_is_there(path: Path) -> None:
    """Imports inside functions too, which fail only when they are reached."""
    ours = {name for name in imports(path) if name.split(".")[0] == "reverie"}
    assert [name for name in sorted(ours) if not is_there(name)] == []


def test_what_is_not_there_is_found_out() -> None:
    assert is_there("reverie.codecs.image.ImageCodec")
    assert is_there("reverie.codecs")
    assert not any(map(is_there, ["reverie.nothing", "reverie.codecs.nothing.x", "reverie.codecs.image.nothing"]))


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_import_of_oracles(path: Path) -> None:
    assert not NEVER & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", sorted((SOURCE / "diffusion").glob("*.py")), ids=lambda path: path.name)
def test_diffusion_is_mathematics_alone(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
    assert outside <= {"torch", "jaxtyping", "reverie"}
