"""What each process of tests/train/test_parallel.py computes: some steps of every recipe in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from reverie.train import parallel
from reverie.train.log import Meter
from reverie.train.loop import Learner, RunSettings
from reverie.train.recipe import OBJECTIVES, read, section


def take_steps(recipes: Sequence[Path], accumulate: int = 1, mark: str = "", **changed: bool) -> None:
    """Keep metrics, weights and the rows of a later step of each recipe, with settings changed so."""
    here = parallel.ranks()
    for recipe in recipes:
        sections = read(recipe)
        settings = section(sections, "run", RunSettings)
        with parallel.first_ahead():
            objective = import_module(OBJECTIVES[sections["objective"]][0]).build(sections, 3, recipe.with_suffix(""))
        learner = Learner(objective, replace(settings, accumulate=accumulate, **changed))
        metrics = []
        for step in range(settings.steps):
            meter = Meter(settings.steps)
            meter.add(learner.step(step))
            metrics.append(meter.event(step, 0.0, {}).metrics)
        batches = [objective.batches(9, part) for part in learner.parts]
        state = {name: whole(value) for name, value in objective.networks.state_dict().items()}
        found = {"metrics": metrics, "batches": batches, "state": state}
        torch.save(found, recipe.with_suffix(f".{here.index}of{here.size * accumulate}{mark}.pt"))


def whole(value: Any) -> Any:
    """Gather what processes hold in parts."""
    return value.full_tensor() if parallel.is_sharded(value) else value


if __name__ == "__main__":
    torch.set_num_threads(1)
    with parallel.process_group(torch.device("cpu")):
        take_steps([Path(recipe) for recipe in sys.argv[1:]])
    threads = [(thread / "comm").read_text() for thread in Path("/proc/self/task").glob("*")]
    assert not [name for name in threads if "gloo" in name], f"the group outlives its end: {threads}"
