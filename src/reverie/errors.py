"""The one exception that reverie raises for bad input, a single line a user can act on; and its warnings.

A warning goes to whoever listens in the same thread, else to Python's warnings, whose filters are those of the process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

_listener: ContextVar[Callable[[str], object] | None] = ContextVar("listener", default=None)


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


def warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Warn of something; `stacklevel` counts from who calls this, as of `warnings.warn`."""
    if (listener := _listener.get()) is None:
        warnings.warn(message, category, stacklevel=stacklevel + 1)
    else:
        listener(message)


@contextmanager
def listen(listener: Callable[[str], object]) -> Iterator[None]:
    """Let a function have what is warned of within the block, in this thread; another thread's goes its own way."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
