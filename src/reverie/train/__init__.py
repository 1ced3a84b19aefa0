"""Training and fine-tuning: one loop, an objective for each part."""

from __future__ import annotations

from reverie.train.recipe import run

__all__ = ["run"]
