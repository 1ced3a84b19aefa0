"""Do two processes of torchrun learn what one does from the whole batch: the same loss, the same gradients?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.errors import ReverieError
from reverie.train import run
from reverie.train.clip import ClipObjective, build
from reverie.train.parallel import Ranks
from reverie.train.recipe import read

KINDS = [("softmax", 0), ("softmax", 1), ("sigmoid", 1)]  # loss and chunk
WORKER = """
import sys
from pathlib import Path

import torch

from reverie.train import parallel
from reverie.train.clip import build
from reverie.train.recipe import read

torch.set_num_threads(1)
folder = Path(sys.argv[1])
with parallel.process_group(torch.device("cpu")):
    rank = parallel.ranks().index
    for recipe in sorted(folder.glob("*.toml")):
        objective = build(read(recipe), 3, folder)
        parameters = list(objective.networks.parameters())
        ((_, loss, metrics),) = objective.losses(0)
        torch.autograd.backward(loss, inputs=parameters)
        parallel.BUCKET = 5000  # several for this tiny network
        parallel.sum_gradients(parameters)
        _, captions = objective.batches(1)
        told = {"loss": metrics["loss"], "share": loss.item(), "captions": list(captions)}
        torch.save(told | {"gradients": [p.grad for p in parameters]}, folder / f"{recipe.stem}.{rank}.pt")
threads = [(thread / "comm").read_text() for thread in Path("/proc/self/task").glob("*")]
assert not [name for name in threads if "gloo" in name], f"the group outlives its end: {threads}"
"""


def torchrun(*arguments: str) -> None:
    """Start two processes, as `torchrun --nproc-per-node 2` does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]


def objective_of(recipe: Path) -> ClipObjective:
    return build(read(recipe), 3, recipe.parent)


def test_two_processes_find_the_loss_and_gradients_of_the_whole_batch(workshop: Any, tmp_path: Path) -> None:
    text = workshop.recipe("clip").read_text()
    for loss, chunk in KINDS:
        contrast = f'[contrast]\nloss = "{loss}"\nchunk = {chunk}\n'
        (tmp_path / f"{loss}{chunk}.toml").write_text(text.replace("[contrast]\n", contrast))
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun(str(tmp_path / "worker.py"), str(tmp_path))
    for loss, chunk in KINDS:
        name = f"{loss}{chunk}"
        first, second = (torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True) for rank in (0, 1))
        alone = objective_of(tmp_path / f"{name}.toml")
        parameters = list(alone.networks.parameters())
        ((_, whole, _),) = alone.losses(0)
        assert first["loss"] == second["loss"] == pytest.approx(whole.item(), rel=1e-5)
        assert first["share"] + second["share"] == pytest.approx(whole.item(), rel=1e-5)
        expected = torch.autograd.grad(whole, parameters)
        for one, other, right in zip(first["gradients"], second["gradients"], expected, strict=True):
            assert torch.equal(one, other)
            # float32, summed in another order; the keys' biases have no gradient but rounding
            assert (one - right).norm() <= 1e-4 * right.norm() + 1e-6
        assert first["captions"] + second["captions"] == list(alone.batches(1)[1])


def test_shares_of_a_batch() -> None:
    here = Ranks(1, 3)
    assert here.share(12) == 4
    assert [here.position(index, 12) for index in range(6)] == [4, 5, 6, 7, 16, 17]
    everything = sorted(Ranks(rank, 3).position(index, 12) for rank in range(3) for index in range(8))
    assert everything == list(range(24))
    with pytest.raises(ReverieError, match="a batch of 10 does not divide among 3 processes; give a multiple"):
        here.share(10)


@pytest.mark.slow
def test_a_recipe_under_torchrun_learns_resumes_and_exports(
    workshop: Any, tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    """Stopped after 2 of 6 steps and resumed by two processes: the bits of two that never stopped, near one's."""
    recipe = tmp_path / "recipe.toml"
    text = workshop.recipe("clip").read_text().replace("[contrast]\n", "[contrast]\nchunk = 1\n")
    recipe.write_text(text)
    command = ["--no-python", str(Path(sys.executable).with_name("reverie")), "train"]
    torchrun(*command, str(recipe), "--out", str(tmp_path / "whole"))
    stop = tmp_path / "stop.py"
    stop.write_text(
        "import sys\nfrom pathlib import Path\nfrom reverie.train import loop, run\n"
        "step = loop.Learner.step\n"
        "def stopping(self, n):\n    if n == 3: sys.exit(0)\n    return step(self, n)\n"
        "loop.Learner.step = stopping\nlist(run(Path(sys.argv[1]), Path(sys.argv[2])))\n"
    )
    torchrun(str(stop), str(recipe), str(tmp_path / "parts"))
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 2
    torchrun(*command, str(recipe), "--out", str(tmp_path / "parts"), "--resume")
    same_run(tmp_path / "whole", tmp_path / "parts")
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))  # each told once
    alone = [event.metrics["loss"] for event in run(recipe, tmp_path / "alone")]
    assert [line["metrics"]["loss"] for line in lines] == pytest.approx(alone, rel=1e-3)
