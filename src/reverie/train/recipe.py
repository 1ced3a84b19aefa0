"""What is a recipe? A TOML file that names an objective and fills in its settings; `run` carries it out."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from reverie.errors import ReverieError
from reverie.train.loop import Event, Objective, RunSettings, train

Settings = TypeVar("Settings")

OBJECTIVES: dict[str, str] = {  # name -> module with `build(sections, seed, out) -> Objective`
    "autoencoder": "reverie.train.autoencoder",
    "classifier": "reverie.train.classifier",
    "clip": "reverie.train.clip",
    "diffusion": "reverie.train.diffusion",
}


def section(sections: dict[str, Any], name: str, kind: type[Settings]) -> Settings:
    """Fill a settings dataclass from one table of a recipe; name what is unknown or missing."""
    table = dict(sections.get(name, {}))
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ReverieError(f"unknown setting {key!r} in [{name}] of the recipe; choose from {', '.join(known)}")
    for key, field in known.items():
        if key not in table and field.default is MISSING and field.default_factory is MISSING:
            raise ReverieError(f"the recipe's [{name}] lacks {key!r}; add it")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


def read(path: Path) -> dict[str, Any]:
    """Read a recipe's tables."""
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReverieError(f"cannot read the recipe {path}: {error.strerror}; give a .toml file") from error
    except tomllib.TOMLDecodeError as error:
        raise ReverieError(f"the recipe {path} is not TOML: {error}") from error
    name = sections.get("objective")
    if name not in OBJECTIVES:
        raise ReverieError(f"the recipe {path} has objective {name!r}; choose from {', '.join(OBJECTIVES)}")
    return sections


def run(path: Path, out: Path | None = None, resume: bool = False) -> Iterator[Event]:
    """Carry out a recipe into the folder `out` (default runs/NAME), yielding events; see `train`."""
    sections = read(path)
    settings = section(sections, "run", RunSettings)
    folder = out or Path("runs") / path.stem
    build: Callable[[dict[str, Any], int, Path], Objective] = import_module(OBJECTIVES[sections["objective"]]).build
    yield from train(build(sections, settings.seed, folder), settings, folder, resume=resume)
