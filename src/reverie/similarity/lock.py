"""How do two processes keep from writing into one folder?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reverie.errors import ReverieError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a folder. The system gives the lock back when a process dies.

    What one that was killed had begun to write beside its files is cleared away. Raises ReverieError where another
    process is at it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ReverieError(f"another process is writing '{folder}'; wait until it is done") from error
        _sweep(folder)
        try:
            yield
        finally:
            _sweep(folder)  # of workers that were killed


def _sweep(folder: Path) -> None:
    for left in folder.glob(".*.part"):
        left.unlink(missing_ok=True)
