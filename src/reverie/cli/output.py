"""Lines that commands write: results on stdout, remarks on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def say(line: str) -> None:
    """Write one line of a command's result to stdout."""
    print(line)


def tell_numbered(names: Sequence[str]) -> None:
    """Say on stderr which names a chart shows as numbers."""
    from reverie.jobs.outputs import numbering_note  # brings pydantic, which takes longer than a --help may

    if note := numbering_note(names):
        print(note, file=sys.stderr)
