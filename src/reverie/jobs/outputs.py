"""Where a job writes: names of files, checked before any work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from reverie.errors import ReverieError
from reverie.files import check_distinct, check_folder
from reverie.media.pictures import FORMATS
from reverie.requests.base import Frozen
from reverie.requests.references import references

LONGEST_SLUG = 48  # characters: a Chinese one has three bytes, and a file's name has at most 255


def slug(text: str, otherwise: str = "picture") -> str:
    """Turn a prompt into a file's name: letters and digits of any script in lower case, dashes between the words.

    One that has neither is named `otherwise`.
    """
    words = re.findall(r"\w+", text.lower().replace("_", " "))
    return "-".join(words)[:LONGEST_SLUG].strip("-") or otherwise


def numbered_paths(path: Path, count: int, *, alone: bool = True) -> list[Path]:
    """Return `path` for one file that stands `alone`, and path-0, path-1, ... for several."""
    if count == 1 and alone:
        return [path]
    return [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


def check_writable(paths: Sequence[Path], inputs: Iterable[Path] = ()) -> None:
    """Raise ReverieError where pictures cannot be written: wrong suffix, a folder of that name, no folder to be in.

    Neither may one of them be an input.
    """
    check_distinct(paths, inputs)
    for path in paths:
        if path.is_dir():
            raise ReverieError(f"output '{path}' is a folder; give the name of a file, such as {path / 'picture.png'}")
        if path.suffix.lower() not in FORMATS:
            given = f"suffix '{path.suffix}'" if path.suffix else "a name without suffix"
            raise ReverieError(
                f"cannot write '{path}': {given} names no picture format; choose from {', '.join(FORMATS)}"
            )
    for folder in {path.parent for path in paths}:
        check_folder(folder)


def check_outputs(paths: Sequence[Path], request: Frozen, *, no_clobber: bool = False) -> None:
    """Raise ReverieError where two outputs have one name, or one is a file that the request starts from.

    With `no_clobber`, also where one is there already.
    """
    if len({path.absolute() for path in paths}) < len(paths):
        raise ReverieError("two outputs have one name; give each its own")
    for path in paths:
        if no_clobber and path.exists():
            raise ReverieError(f"'{path}' is there already; give another name, or leave out `no_clobber`")
    check_distinct(paths, [Path(file.path) for _, file in references(request) if file.path])


def numbering_note(names: Sequence[str]) -> str | None:
    """Say which names a chart shows as numbers, because no font of the system can write them; None where all are."""
    from reverie.media.charts import drawable_names  # brings numpy

    replaced = [f"{shown} {name}" for shown, name in zip(drawable_names(names), names, strict=True) if shown != name]
    if not replaced:
        return None
    return f"no font here can write these names, so they are numbered: {', '.join(replaced)}; install one"
