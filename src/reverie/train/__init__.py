"""How is each part trained? One loop for every objective; a recipe names both."""

from __future__ import annotations

from reverie.train.recipe import run

__all__ = ["run"]
