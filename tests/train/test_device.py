"""Does a run compute on the device that its recipe names?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import ReverieError
from reverie.train import run


def on(device: str, recipe: Path, folder: Path) -> Path:
    """Write a recipe anew for another device."""
    moved = folder / recipe.name
    moved.write_text(recipe.read_text().replace('device = "cpu"', f'device = "{device}"'))
    return moved


def test_a_device_that_is_not_there(workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="unknown device 'abacus'; choose from auto, cpu"):
        list(run(on("abacus", workshop.recipe("clip"), tmp_path), tmp_path / "run"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["features", "autoencoder", "clip", "diffusion"])
def test_a_gpu_learns_as_the_cpu_does(workshop: Any, name: str, tmp_path: Path) -> None:
    """Batches and noise are the same; the first losses differ by rounding alone."""
    there = list(run(on("cuda", workshop.recipe(name), tmp_path), tmp_path / "cuda"))
    here = list(run(on("cpu", workshop.recipe(name), tmp_path), tmp_path / "cpu"))
    assert all(math.isfinite(value) for event in there for value in event.metrics.values())
    for key, value in here[0].metrics.items():
        assert there[0].metrics[key] == pytest.approx(value, rel=1e-2, abs=1e-4), key
