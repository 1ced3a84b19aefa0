"""`reverie cache`: what lies in the user's cache directory, and the way to be rid of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.output import say
from reverie.errors import choose
from reverie.files import cache_folder, unwritable

DEEP = ("packed",)  # folders of which every one inside is listed: one a model


def cache(*, clear: Annotated[str | None, Parameter(show_default=False)] = None) -> None:
    """List what is kept between runs, with sizes: packed weights, one line a model, compiled kernels, frames, profiles.

    Parameters
    ----------
    clear
        Remove one of the lines by its name, or "all".
    """
    root = cache_folder()
    kept = {str(path.relative_to(root)): path for path in _listed(root)}
    if clear is None:
        sizes = {name: _size(path) for name, path in kept.items()}
        for name, size in sizes.items():
            say(f"{size / 1e6:10.1f} MB  {name}")
        say(f"{sum(sizes.values()) / 1e6:10.1f} MB  in '{root}'")
        return
    choices = {"all": list(kept.values()), **{name: [path] for name, path in kept.items()}}
    for path in choose("name", clear, choices):
        with unwritable(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _listed(root: Path) -> list[Path]:
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return [inner for path in paths for inner in (sorted(path.iterdir()) if path.name in DEEP else [path])]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
