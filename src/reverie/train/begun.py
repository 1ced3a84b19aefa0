"""The recipe that a run was begun with, kept in its folder: whoever goes on with another is told what changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.files import name_of, reason_of, write_text

RECIPE = "recipe.json"  # in the folder of a run
LONGEST_NAME = 255  # of a file, in characters
IDLE = frozenset(
    ("log_every", "save_every", "sample_every", "threads", "device", "workers", "show", "recompute_layers", "shard")
)  # what a run is watched and hastened by: the result stays


def deciding(sections: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a recipe's tables, and of all settings of [run], decides the result: "run.lr" and so on.

    Files are named without their folders.
    """
    tables = {name: table for name, table in sections.items() if isinstance(table, dict)} | {"run": run}
    return {
        f"{table}.{name}": _without_folders(value)
        for table, settings in tables.items()
        for name, value in settings.items()
        if name not in IDLE
    }


def _without_folders(value: Any) -> Any:
    """Leave out the folders of what names a file: it is the same one elsewhere."""
    if isinstance(value, list | tuple):
        return [_without_folders(one) for one in value]
    is_file = isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and "\0" not in value and Path(value).exists()
    return name_of(value) if is_file else value


def write(out: Path, recipe: Mapping[str, Any]) -> None:
    """Write down the recipe of a run."""
    write_text(out / RECIPE, json.dumps(recipe, ensure_ascii=False, indent=1))


def changes(out: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Say what of a recipe is not as a run began, such as "run.lr was 0.1 and is 0.2"; nothing where none is kept."""
    try:
        before: dict[str, Any] = json.loads((out / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ReverieError(f"cannot read '{out / RECIPE}': {reason_of(error)}; remove it to go on") from error
    return list(_differences(before, recipe))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*before, *now)):
        if name not in now:
            yield f"{name} was {_text(before[name])} and is left out"
        elif name not in before:
            yield f"{name} was left out and is {_text(now[name])}"
        elif before[name] != now[name]:
            yield f"{name} was {_text(before[name])} and is {_text(now[name])}"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
