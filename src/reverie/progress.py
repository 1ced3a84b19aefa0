"""How far long work is: the one form in which drawing, playing, training, embedding and writing report it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work; subclasses hold what the latest of them gave.

    `notes`, of the first one alone, say what of the request is not honoured.
    """

    done: int
    total: int
    unit: str
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def index(self) -> int:
        """Return the number, from 0, of the unit that was just finished."""
        return self.done - 1

    @property
    def details(self) -> str:
        """Return what else a line about the work tells, such as a loss; empty for most."""
        return ""
