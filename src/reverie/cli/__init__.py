"""The command `reverie`: one thin file an area over jobs and the Python API."""

import sys


def main() -> None:
    """Run the command line of this process; Ctrl-C while it is being imported ends it as one later does."""
    try:
        from reverie.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports SIGINT
