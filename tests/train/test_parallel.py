"""Do two processes of torchrun learn what one does from the whole batch: the same losses, the same weights?"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reverie.data.loader import BatchPart
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.train import parallel, run

WORKER = Path(__file__).with_name("worker.py")
RUN = """
[run]
steps = 2
lr = 1e-3
warmup = 0
ema = 0.9
eps = 1e-3  # of AdamW, which else turns the rounding of a gradient of 0 into a whole step
seed = 3
threads = 1
device = "cpu"
"""
PICTURES = '[data]\npictures = "{folder}/pictures"\ncaption = "a bear"\nbatch = 6\n'
MODEL = '[model]\nbase = "{folder}/base"\n'
TABLES = {
    "autoencoder": f"""{PICTURES}crop = 16
[model]
block_out_channels = [8, 8]
layers_per_block = 1
norm_num_groups = 4
[loss]
adversarial = 0.5
adversarial_width = 4
adversarial_layers = 1
""",
    "classifier": """[classifier]
make = "residual"
widths = [4]
subset = "instruments"
batch = 6
noise = 0.1
""",
    "diffusion": """[unet]
sample_size = 8
block_out_channels = [8, 16]
layers_per_block = 1
transformer_depth = [1, 0]
num_heads = [2, 2]
cross_attention_dim = 16
norm_num_groups = 4
[data]
autoencoder = "{folder}/base/vae"
clip = "{clip}/export"
subset = "instruments"
pool = 20
batch = 6
dropout = 0.2
""",
    "finetune": f"{MODEL}{PICTURES}dropout = 0.2\n[text]\npace = 0.5\n",
    "distill": f"{MODEL}{PICTURES}[distill]\nphases = 2\nguidance = 2.0\n[adversary]\nweight = 0.1\nwidth = 4\n",
}
CONTRASTS = {"softmax": 0, "sigmoid1": 1}  # loss and chunk


def torchrun(*arguments: str, processes: int = 2) -> None:
    """Start processes, as `torchrun --nproc-per-node 2` does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*command, *arguments], env=environment, check=False, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(workshop: Any, tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a recipe of every objective, and what one process finds by each."""
    folder = tmp_path_factory.mktemp("parallel")
    tiny.save(folder / "base")
    (folder / "pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    clip = workshop.recipe("clip").read_text().split("[run]")[0].replace("batch = 4", "batch = 6") + RUN
    for name, chunk in CONTRASTS.items():
        contrast = f'[contrast]\nloss = "{name.rstrip("1")}"\nchunk = {chunk}\n'
        (folder / f"{name}.toml").write_text(clip.replace("[contrast]\n", contrast))
    for name, tables in TABLES.items():
        text = f'objective = "{name}"\n{RUN}{tables}'.replace("{folder}", str(folder))
        (folder / f"{name}.toml").write_text(text.replace("{clip}", str(workshop.trained("clip"))))
    runpy.run_path(str(WORKER))["take_steps"](recipes_of(folder))
    return folder


def recipes_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.toml"))


def compare(recipes: Sequence[Path], parts: int, processes: int) -> None:
    """Compare what processes have found in so many parts of a batch with what one has found in the whole."""
    for recipe in recipes:
        name, alone = recipe.stem, torch.load(recipe.with_suffix(".0of1.pt"))
        found = [torch.load(recipe.with_suffix(f".{rank}of{parts}.pt")) for rank in range(processes)]
        for one in found:
            for here, there in zip(one["metrics"], alone["metrics"], strict=True):
                assert here == pytest.approx(there, rel=1e-5, abs=1e-6), name
            for key, value in alone["state"].items():
                assert torch.equal(one["state"][key], found[0]["state"][key]), (name, key)
                torch.testing.assert_close(one["state"][key], value, rtol=1e-4, atol=1e-5)
        assert rows([part for one in found for part in one["batches"]]) == rows(alone["batches"]), name


def rows(parts: list[Any]) -> list[Any]:
    """Join the parts of a batch."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts).tolist()
    if isinstance(parts[0], dict):
        return [rows([part[name] for part in parts]) for name in parts[0]]
    if isinstance(parts[0][0], str):
        return [text for part in parts for text in part]
    return [rows(list(column)) for column in zip(*parts, strict=True)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_learn_what_one_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked, as torchrun's would import torch anew: half of the time."""
    monkeypatch.setattr(parallel, "BUCKET", 5000)  # several for these tiny networks
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    started = [multiprocessing.get_context("fork").Process(target=join, args=(folder, rank, port)) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    compare(recipes_of(folder), 2, 2)


def join(folder: Path, rank: int, port: int) -> None:
    """Take the steps as one of two processes."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    with parallel.process_group(torch.device("cpu")):
        runpy.run_path(str(WORKER))["take_steps"](recipes_of(folder))


def test_accumulated_gradients_are_those_of_the_whole_batch(folder: Path) -> None:
    """Every objective without batch normalisation, whose statistics are of a part, and whose loss is a mean."""
    recipes = [folder / f"{name}.toml" for name in ("distill", "finetune")]
    runpy.run_path(str(WORKER))["take_steps"](recipes, accumulate=3)
    compare(recipes, 3, 1)


@pytest.mark.slow
def test_three_processes_learn_what_one_does(folder: Path) -> None:
    torchrun(str(WORKER), *map(str, recipes_of(folder)), processes=3)
    compare(recipes_of(folder), 3, 3)


def test_parts_of_a_batch() -> None:
    assert list(BatchPart(1, 3).rows(range(12, 24))) == [16, 17, 18, 19]
    with pytest.raises(
        ReverieError, match="a batch of 10 does not divide into 6 parts, of 3 processes with accumulate = 2; give a mul"
    ):
        BatchPart(1, 6, 2).rows(range(10))


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


KILLED = """
import os, signal, sys
from pathlib import Path
from reverie.train import loop, parallel, run

step = loop.Learner.step
def killed(self, n):
    if n == 3 and os.environ["RANK"] == "1" and not parallel.is_restarted():
        os.kill(os.getpid(), signal.SIGKILL)
    with (Path(sys.argv[2]).parent / f"steps.{os.environ['RANK']}").open("a") as steps:
        steps.write(f"{n} {self.objective.keys(n, self.parts[0])}\\n")
    return step(self, n)

loop.Learner.step = killed
list(run(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_a_killed_process_goes_on_from_the_last_checkpoint(
    folder: Path, tmp_path: Path, same_run: Callable[[Path, Path], None], shard: str
) -> None:
    """By torchrun, which starts both anew: the bits of a run in which none was killed, from the same examples."""
    recipe, script = tmp_path / "finetune.toml", tmp_path / "killed.py"
    settings = f"steps = 5\nsave_every = 2\nshard = {shard}\n"
    recipe.write_text((folder / "finetune.toml").read_text().replace("steps = 2\n", settings))
    script.write_text(KILLED)
    torchrun("--max-restarts", "1", str(script), str(recipe), str(tmp_path / "killed"))
    script.write_text(KILLED.replace("n == 3", "False"))
    torchrun(str(script), str(recipe), str(tmp_path / "whole"))
    same_run(tmp_path / "whole", tmp_path / "killed")
    for rank in (0, 1):
        told = (tmp_path / f"steps.{rank}").read_text().splitlines()
        before, after, whole = told[:-8], told[-8:-5], told[-5:]
        assert before[:3] == whole[:3]
        assert after == whole[2:]
