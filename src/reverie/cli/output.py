"""Where does a command write? Names of files, checked before any work is done, and lines on stdout."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reverie.errors import ReverieError
from reverie.files import check_folder
from reverie.media.lettering import labelled
from reverie.media.pictures import FORMATS

LONGEST_SLUG = 48  # characters: a Chinese one has three bytes, and a file's name has at most 255


def say(line: str) -> None:
    """Write one line of a command's result to stdout."""
    print(line)


@contextmanager
def warned() -> Iterator[None]:
    """Tell the warnings of a block on stderr, a line each."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    for warning in told:
        print(warning.message, file=sys.stderr)


def tell_numbered(names: Sequence[str]) -> None:
    """Say on stderr which names a chart shows as numbers, because no font of the system can write them."""
    numbered = [f"{shown} {name}" for shown, name in zip(labelled(names), names, strict=True) if shown != name]
    if numbered:
        told = ", ".join(numbered)
        print(f"no font here can write these names, so they are numbered: {told}; install one", file=sys.stderr)


def slug(text: str, otherwise: str = "picture") -> str:
    """Turn a prompt into a file's name: letters and digits of any script in lower case, dashes between the words.

    One that has neither is named `otherwise`.
    """
    words = re.findall(r"\w+", text.lower().replace("_", " "))
    return "-".join(words)[:LONGEST_SLUG].strip("-") or otherwise


def numbered(path: Path, count: int) -> list[Path]:
    """Return `path` for one picture, and path-0, path-1, ... for several."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{index}") for index in range(count)]


def check_writable(paths: list[Path]) -> None:
    """Raise ReverieError where pictures cannot be written: wrong suffix, a folder of that name, no folder to be in."""
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
