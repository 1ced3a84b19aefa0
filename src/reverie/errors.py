"""The one exception that reverie raises for bad input: its message is a single line a user can act on."""

from __future__ import annotations


class ReverieError(ValueError):
    """Report bad input in one line: what was given, what is allowed, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
