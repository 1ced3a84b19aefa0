"""The command `reverie`: one thin file an area over jobs and the Python API."""

import atexit
import gc
import sys

COLLECTIONS = 100  # of the younger objects before all are looked through: imports make 170,000 that stay


def main() -> None:
    """Run the command line of this process; Ctrl-C while it is being imported ends it as one later does."""
    spare_collections()
    try:
        from reverie.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports SIGINT


def spare_collections() -> None:
    """Look for garbage among what imports made seldom, and not at the end, when it goes with the process."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, COLLECTIONS)
    atexit.register(gc.freeze)
