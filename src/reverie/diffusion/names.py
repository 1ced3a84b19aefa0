"""Lookup of a name in a table, with one error for all tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from reverie.errors import ReverieError

T = TypeVar("T")


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look up name in a table of one kind ("sampler", "spacing", ...); an unknown one raises the list of the known."""
    if name not in table:
        raise ReverieError(f"unknown {kind} {name!r}; choose from {', '.join(table)}")
    return table[name]
