"""Does every module import only what stands to its left? The layers, read from the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reverie"
LAYERS = (
    {"errors"},
    {"models", "diffusion", "tokenizer", "data"},
    {"codecs", "checkpoints"},
    {"system"},
    {"generate", "similarity"},
    {"train"},  # draws its contact sheets with generate
    {"server", "cli"},
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
    if room == "__init__":
        return  # the public names come from everywhere
    assert room in LEVEL, f"'{room}' stands in no layer: add it to LAYERS and to docs/architecture.md"
    for other in rooms_imported(path) - {room}:
        if other == "":
            assert room in LAYERS[-1], f"{room} imports the public package; import the module that is meant"
        else:
            assert LEVEL[other] < LEVEL[room], f"{room} imports {other}, which does not stand to its left"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_import_of_oracles(path: Path) -> None:
    assert not NEVER & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", sorted((SOURCE / "diffusion").glob("*.py")), ids=lambda path: path.name)
def test_diffusion_is_mathematics_alone(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
    assert outside <= {"torch", "jaxtyping", "reverie"}
