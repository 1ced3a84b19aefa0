"""Lines that commands write: results on stdout, remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from reverie.errors import listen


def say(line: str) -> None:
    """Write one line of a command's result to stdout."""
    print(line)


def tell_numbered(names: Sequence[str]) -> None:
    """Say on stderr which names a chart shows as numbers."""
    from reverie.jobs.outputs import numbering_note  # brings pydantic, which takes longer than a --help may

    if note := numbering_note(names):
        print(note, file=sys.stderr)


@contextmanager
def tell_warnings() -> Iterator[None]:
    """Say the library's warnings of the block on stderr, a line each, as they come; each of them once."""
    said: set[str] = set()

    def tell(line: str) -> None:
        if line not in said:
            said.add(line)
            print(line, file=sys.stderr)

    with listen(tell):
        yield
