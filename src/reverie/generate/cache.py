"""Where is kept what may be lost? In a folder of the user's cache, or where the environment says."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "REVERIE_CACHE"  # environment variable that names another folder


def folder() -> Path:
    """Return the folder, which may not be there yet."""
    if own := os.environ.get(FOLDER):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie"
