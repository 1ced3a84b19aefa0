"""How is a safety checker read? From its folder in diffusers' layout, alone or inside a model."""

from __future__ import annotations

from pathlib import Path

import torch

from reverie.checkpoints.configs import read_clip
from reverie.checkpoints.load import CPU, TRANSFORMERS_STEM, blueprint
from reverie.checkpoints.weights import find_weights, load_weights, read_json
from reverie.errors import ReverieError
from reverie.models.safety import SafetyChecker, SafetyConfig

INSIDE = "safety_checker"  # the folder's name inside a model


def load_safety(
    path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32
) -> SafetyChecker:
    """Read a safety checker: `path` is its folder, or that of a model which holds one.

    Raises ReverieError where there is none or it is damaged.
    """
    folder = Path(path) / INSIDE if (Path(path) / INSIDE).is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise ReverieError(f"no safety checker in '{path}'; give the folder {INSIDE} of a model in diffusers' layout")
    config = read_clip(read_json(folder / "config.json"), str(folder / "config.json"))
    safety = SafetyConfig(vision=config.vision, projection_dim=config.projection_dim)
    checker = blueprint(lambda: SafetyChecker(safety))
    files = find_weights(folder, TRANSFORMERS_STEM, dtype)
    load_weights(checker, files, device=device, dtype=dtype, rename=_tower)
    return checker


def _tower(name: str) -> str:
    """Name a weight as ours: transformers before version 5 put one `vision_model.` into another."""
    return name.replace("vision_model.vision_model.", "vision_model.", 1)
