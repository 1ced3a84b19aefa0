"""The one exception that reverie raises for bad input: its message is a single line a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar


class ReverieError(ValueError):
    """Bad input, in one line: what was given, what is allowed, and as `hint` what to do.

    `field` is the request's field that it is about, for whoever shows the error beside its input. Fields that the
    message names for the user to give stand in backticks: the command line shows `init` as --init.
    """

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None):
        super().__init__(f"{message}; {hint}" if hint else message)
        self.field = field
        self.hint = hint


class RequestWarning(UserWarning):
    """Warn of what a model cannot do well of a request: words that it never learned, sizes far from its own."""


T = TypeVar("T")


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look up name in a table of one kind ("sampler", "spacing", ...); an unknown one raises the list of the known."""
    if name not in table:
        raise ReverieError(f"unknown {kind} {name!r}; choose from {', '.join(table)}")
    return table[name]
