"""Recipes: TOML files that name an objective and fill in its settings; `run` carries one out."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from reverie.data.captioned import is_walked
from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.train.log import TrainingStep
from reverie.train.loop import RunSettings, train
from reverie.train.objective import Objective
from reverie.train.parallel import process_count

Settings = TypeVar("Settings")
Share = Annotated[float, Field(ge=0, le=1)]

# Name -> module with `build(sections, seed, out) -> Objective`, and the tables that it reads.
OBJECTIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "autoencoder": ("reverie.train.autoencoder", ("model", "data", "spectrogram", "loss")),
    "classifier": ("reverie.train.classifier", ("classifier",)),
    "clip": ("reverie.train.clip", ("text", "vision", "contrast", "data", "evaluation")),
    "diffusion": ("reverie.train.diffusion", ("unet", "data", "diffusion")),
    "distill": (
        "reverie.train.distill",
        ("model", "data", "scenes", "spectrogram", "lora", "distill", "adversary"),
    ),
    "enlarge": ("reverie.train.enlarge", ("enlarge", "scenes")),
    "listener": ("reverie.train.listener", ("listener",)),
    "patched": ("reverie.train.patched", ("patched",)),
    "probe": ("reverie.train.probe", ("probe",)),
    "finetune": (
        "reverie.train.finetune",
        (
            "model",
            "data",
            "augment",
            "captions",
            "scenes",
            "spectrogram",
            "text",
            "lora",
            "inversion",
            "control",
            "ip_adapter",
            "prior",
            "loss",
        ),
    ),
}
COLLECTIONS = ("pictures", "sounds", "held_out", "path", "masks", "hints")  # keys of folders that are learned from
UNDIVIDED = ("clip", "enlarge")  # objectives whose loss is of a whole batch, not a mean over its rows


def section(sections: dict[str, Any], name: str, kind: type[Settings]) -> Settings:
    """Fill a settings dataclass from one table of a recipe; name what is unknown, missing or of the wrong type."""
    table = sections.get(name, {})
    if not isinstance(table, dict):
        raise ReverieError(f"the recipe has {name} = {table!r}; write a table [{name}]")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ReverieError(f"unknown setting {key!r} in [{name}] of the recipe; choose from {', '.join(known)}")
    for key, field in known.items():
        if key not in table and field.default is MISSING and field.default_factory is MISSING:
            raise ReverieError(f"the recipe's [{name}] lacks {key!r}; add it")
    try:
        settings = TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(refused := first.get("ctx", {}).get("error"), ReverieError):  # by the dataclass itself
            raise refused from None
        key, *inner = first["loc"]
        where = ".".join([str(key), *(str(part) for part in inner if isinstance(part, int))])  # no kinds of a union
        raise ReverieError(f"{where} = {first['input']!r} in [{name}] of the recipe: {first['msg']}") from error
    for key, given in table.items():
        if _is_mistaken(given, getattr(settings, key)):
            raise ReverieError(
                f"{key} = {str(given).lower()} in [{name}] of the recipe: give a number, not true or false"
            )
    return settings


def _is_mistaken(given: Any, read: Any) -> bool:
    """Tell whether true or false was given, alone or in a list, where a number was read, as Python allows."""
    if isinstance(given, list):
        return any(map(_is_mistaken, given, read))
    return isinstance(given, bool) and not isinstance(read, bool)


def read(path: Path, within: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a recipe's tables; `extends = "other.toml"` takes those of a recipe beside it and changes single keys.

    `within` are the recipes that extend it.

    Raises ReverieError, also where torchrun started several processes for one's work.
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReverieError(f"cannot read the recipe {path}: {reason_of(error)}; give a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReverieError(f"the recipe {path} is not TOML: {error}") from error
    if (base := sections.pop("extends", None)) is not None:
        chain = (*within, path.resolve())
        if not isinstance(base, str) or (path.parent / base).resolve() in chain:
            raise ReverieError(f"the recipe {path} extends {base!r}; give the name of another recipe")
        sections = _merge(read(path.parent / base, chain), sections)
    name, known = sections.get("objective"), ", ".join(OBJECTIVES)
    if name is None:
        raise ReverieError(f'the recipe {path} names no objective; add a line objective = "...", with one of {known}')
    if name not in [*OBJECTIVES]:
        raise ReverieError(f"the recipe {path} has objective {name!r}; choose from {known}")
    allowed = ("objective", "run", *OBJECTIVES[name][1])
    for key in sections:
        if key not in allowed:
            raise ReverieError(f"the recipe {path} has an unknown table {key!r}; choose from {', '.join(allowed)}")
    _check_division(name, sections)
    return sections


def _check_division(name: str, sections: dict[str, Any]) -> None:
    """Raise ReverieError where the batch of an objective would be divided and must not be."""
    if (processes := process_count()) > 1 and name in UNDIVIDED and name != "clip":  # CLIP gathers its features
        raise ReverieError(f"the objective {name} learns in one process, not in {processes}; leave torchrun out")
    if name in UNDIVIDED and section(sections, "run", RunSettings).accumulate > 1:
        instead = "give chunk in [contrast] instead" if name == "clip" else "leave it out"
        raise ReverieError(f"accumulate in [run] of the recipe: the objective {name} needs whole batches; {instead}")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay a recipe over the one that it extends, table by table and key by key."""
    tables = {name: {**base.get(name, {}), **table} for name, table in changes.items() if isinstance(table, dict)}
    return {**base, **changes, **tables}


def folder_of(path: Path, out: Path | None) -> Path:
    """Return the folder of a recipe's run: `out`, or runs/NAME. Raises ReverieError where that is a file."""
    folder = out or Path("runs") / path.stem
    if folder.is_file():
        raise ReverieError(f"'{folder}' is a file, and a run is kept in a folder; choose another `out`")
    return folder


def check_apart(sections: Mapping[str, Any], folder: Path) -> None:
    """Raise ReverieError where the folder of a run lies in one whose pictures or sounds the recipe learns from."""
    tables = {name: table for name, table in sections.items() if isinstance(table, dict)}
    named = ((name, key, value) for name, table in tables.items() for key, value in table.items() if key in COLLECTIONS)
    for name, key, value in named:
        if isinstance(value, str) and value and is_walked(Path(value)) and _lies_in(folder, Path(value)):
            raise ReverieError(
                f"the run's folder '{folder}' lies in {key} = '{value}' of [{name}], which would take its sheets "
                "for examples; choose another `out`"
            )


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def run(path: Path, out: Path | None = None, resume: bool = False) -> Iterator[TrainingStep]:
    """Carry out a recipe into the folder `out` (default runs/NAME), yielding events; see `train`."""
    sections = read(path)
    settings = section(sections, "run", RunSettings)
    folder = folder_of(path, out)
    check_apart(sections, folder)
    module, _ = OBJECTIVES[sections["objective"]]
    build: Callable[[dict[str, Any], int, Path], Objective] = import_module(module).build
    yield from train(lambda: build(sections, settings.seed, folder), settings, folder, resume=resume, sections=sections)
