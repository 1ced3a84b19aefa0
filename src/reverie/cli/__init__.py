"""The command `reverie`: one thin file an area over the Python API."""

from reverie.cli.app import main

__all__ = ["main"]
