"""Do processes that hold parts of the weights learn what one does that holds all, and go on in other numbers?"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from reverie.errors import ReverieError
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.requests.references import CLIP_FOLDER as CLIP
from reverie.train import parallel, run
from reverie.train.checkpoint import latest
from reverie.train.finetune import build
from reverie.train.loop import Learner, RunSettings
from reverie.train.recipe import read, section

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
RECIPE = """
objective = "finetune"
[run]
steps = 3
lr = 1e-3
warmup = 0
eps = 1e-3  # of AdamW, which else turns the rounding of a gradient of 0 into a whole step
weight_decay = 0.1
seed = 3
threads = 1
device = "cpu"
log_every = 1
save_every = 2
{run}
[model]
base = "{folder}/base"
[data]
pictures = "{folder}/pictures"
caption = "a bear"
batch = 6
show = ["a bear"]
{tables}
"""


@pytest.fixture(scope="module")
def write(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a recipe of a name, with further lines and tables."""
    folder = tmp_path_factory.mktemp("shards")
    one_level = replace(
        tiny.unet.config, block_out_channels=(8,), transformer_depth=(0,), num_heads=(2,), mid_transformer_depth=1
    )
    torch.manual_seed(0)
    replace(tiny, unet=UNet(one_level).eval()).save(folder / "base")
    (folder / "pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")

    def write(name: str, run: str = "", tables: str = "[text]\npace = 0.5\n") -> Path:
        run = run if "ema" in run else f"ema = 0.9\n{run}"
        (path := folder / f"{name}.toml").write_text(RECIPE.format(folder=folder, run=run, tables=tables))
        return path

    return write


def fork(processes: int, *works: Callable[[], object]) -> None:
    """Let processes do works, one after another, each in a group of its own that leaves nothing behind."""
    ports = [str(free_port()) for _ in works]

    def join(rank: int) -> None:
        for port, work in zip(ports, works, strict=True):
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank)}
            work()
            threads = [(thread / "comm").read_text() for thread in Path("/proc/self/task").glob("*")]
            assert not [name for name in threads if "gloo" in name], f"the group outlives its end: {threads}"

    started = [multiprocessing.get_context("fork").Process(target=join, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
        assert process.exitcode == 0


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def gradients(recipe: Path, kept: Path) -> None:
    """Keep the gradients of a step, whole, and their norm before it was cut to a thousandth."""
    settings = section(read(recipe), "run", RunSettings)
    with parallel.process_group(torch.device("cpu")):
        with parallel.first_ahead():
            objective = build(read(recipe), 3, kept.parent)
        learner = Learner(objective, settings)
        for part in learner.parts:
            list(learner._gradients(0, part, objective.losses(0, part)))
        parameters = learner.groups["unet"]
        parallel.sum_gradients(parameters)
        norm = parallel.clip_gradients(parameters, 1e-3)
        found = [parameter.grad for parameter in parameters]
        whole = [one.full_tensor() if parallel.is_sharded(one) else one for one in found]
        if parallel.is_first():
            torch.save({"norm": norm, "gradients": whole}, kept)
        del learner, objective, parameters, found


def losses(out: Path) -> list[float]:
    return [json.loads(line)["metrics"]["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def saved(out: Path) -> dict[str, Any]:
    """Return all of a checkpoint in parts, as torch itself joins them."""
    whole = out / "joined.pt"
    dcp_to_torch_save(latest(out), whole)
    return torch.load(whole, weights_only=True)


def assert_near(one: Path, other: Path, error: float) -> None:
    """Compare two exports, whose files may be named after the runs."""
    files = [sorted((out / "export").rglob("*.safetensors")) for out in (one, other)]
    assert files[0]
    for ours, theirs in ((load_file(own), load_file(their)) for own, their in zip(*files, strict=True)):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].float(), value.float(), rtol=error, atol=error)


def carry_out(recipe: Path, out: Path, *copies: Path, resume: bool = False) -> None:
    """Carry a recipe out; as it was after the first checkpoint, of step 2, it is copied."""
    for event in run(recipe, out, resume):
        if event.step == 3:
            for copy in copies:
                shutil.copytree(out, copy)


@pytest.fixture(scope="module")
def runs(write: Callable[..., Path]) -> Path:
    """Carry one recipe out by two processes, sharded, and by one; both were copied after step 2."""
    recipe, plain = write("sharded", "shard = true\nrecompute_layers = true"), write("plain")
    out = recipe.parent
    copies = [out / name for name in ("again", "one", "three", "plainly")]
    carry_out(plain, out / "alone", out / "mixed")
    gradients(plain, out / "alone.pt")
    fork(
        2,
        lambda: carry_out(recipe, out / "two", *copies),
        lambda: carry_out(recipe, out / "again", resume=True),
        lambda: carry_out(recipe, out / "mixed", resume=True),
        lambda: gradients(recipe, out / "two.pt"),
    )
    return out


def test_two_processes_with_a_half_each_learn_what_one_does(runs: Path) -> None:
    assert losses(runs / "two") == pytest.approx(losses(runs / "alone"), rel=1e-5)
    assert_near(runs / "two", runs / "alone", 1e-4)
    alone, two = torch.load(runs / "alone.pt"), torch.load(runs / "two.pt")
    torch.testing.assert_close(two["norm"], alone["norm"], rtol=1e-4, atol=0)
    assert alone["norm"] > 1e-3
    for ours, theirs in zip(two["gradients"], alone["gradients"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)
    sizes = [path.stat().st_size for path in latest(runs / "two").glob("*.distcp")]
    assert len(sizes) == 2
    assert max(sizes) < 1.5 * min(sizes)


def test_a_sharded_run_goes_on_to_the_bit_on_as_many(runs: Path) -> None:
    whole, again = saved(runs / "two"), saved(runs / "again")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for path in (runs / "two/export").rglob("*.safetensors"):
        assert path.read_bytes() == (runs / "again" / path.relative_to(runs / "two")).read_bytes()
    assert len(list((runs / "two/checkpoints").iterdir())) == 1  # the last


def test_a_sharded_run_goes_on_on_one_and_a_whole_one_on_two(runs: Path) -> None:
    carry_out(runs / "sharded.toml", runs / "one", resume=True)
    for name in ("one", "mixed"):
        assert losses(runs / name) == pytest.approx(losses(runs / "two"), rel=1e-5)
        assert_near(runs / name, runs / "two", 1e-5)
        found, expected = saved(runs / name), saved(runs / "two")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)
    assert not (runs / "mixed/checkpoint.pt").exists()


@pytest.mark.slow
def test_a_sharded_run_goes_on_on_three_and_without_shards(runs: Path) -> None:
    fork(3, lambda: carry_out(runs / "sharded.toml", runs / "three", resume=True))
    carry_out(runs / "plain.toml", runs / "plainly", resume=True)
    for name in ("three", "plainly"):
        assert losses(runs / name) == pytest.approx(losses(runs / "two"), rel=1e-5)
        assert_near(runs / name, runs / "two", 1e-5)
    assert latest(runs / "plainly") == runs / "plainly/checkpoint.pt"
    assert not (runs / "plainly/checkpoints").exists()


OTHERS = {
    "lora": ("", "[lora]\nrank = 2\n"),
    "control": ("", '[control]\ndetect = "canny"\n'),
    "ip adapter": ("", f'[ip_adapter]\nencoder = "{CLIP}"\n'),
    "bfloat16": ('precision = "bfloat16"', ""),
    "accumulated": ("accumulate = 3\nema_length = 0.1", ""),
    "held out": ("patience = 1\nsample_every = 1", "held_out = 0.4\n[text]\npace = 0.5\n"),
}


@pytest.mark.slow
def test_what_else_is_learned_in_parts(write: Callable[..., Path]) -> None:
    recipes = {}
    for name, (settings, tables) in OTHERS.items():
        recipes[name] = write(name, settings, tables), write(f"{name}-shard", f"{settings}\nshard = true", tables)
    for plain, _ in recipes.values():
        carry_out(plain, plain.with_suffix(""))
    fork(2, *(lambda path=path: carry_out(path, path.with_suffix("")) for _, path in recipes.values()))
    for name, (plain, sharded) in recipes.items():
        error = 1e-2 if name == "bfloat16" else 1e-5
        assert losses(sharded.with_suffix("")) == pytest.approx(losses(plain.with_suffix("")), rel=error), name
        assert_near(sharded.with_suffix(""), plain.with_suffix(""), max(error, 1e-4))


def test_a_damaged_part_or_another_recipe_gets_one_line(runs: Path, tmp_path: Path) -> None:
    def resume(text: Callable[[str], str] = str) -> None:
        (recipe := tmp_path / "recipe.toml").write_text(text((runs / "sharded.toml").read_text()))
        list(run(recipe, tmp_path / "run", resume=True))

    shutil.copytree(runs / "two", tmp_path / "run")
    with pytest.warns(match="ema was 0.9"), pytest.raises(ReverieError, match="was written by another recipe; resume"):
        resume(lambda text: text.replace("ema = 0.9", "ema = 0"))
    checkpoint = latest(tmp_path / "run")
    part, largest = checkpoint / "__0_0.distcp", max(saved(tmp_path / "run").values(), key=torch.numel)
    content = bytearray(part.read_bytes())
    content[content.index(largest.numpy().tobytes()[:64])] ^= 1
    part.write_bytes(content)
    with pytest.raises(ReverieError, match=rf"{checkpoint.name} is damaged or not a checkpoint; remove it"):
        resume()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ReverieError, match="is damaged or not a checkpoint"):
        resume()
    assert not Harmful.harm.exists()


class Harmful:
    """What a pickle can be: something that is run."""

    harm = Path("harm-was-done")

    def __reduce__(self) -> Any:
        return Path.touch, (self.harm,)


def test_a_full_disk_leaves_the_checkpoint_before(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = run(write("full", "shard = true", ""), tmp_path / "run")
    while next(events).step < 3:
        pass
    before = latest(tmp_path / "run")

    def full(self: object, path: Path, mode: str) -> Any:
        return Path("/dev/full").open("wb", 0)

    monkeypatch.setattr(filesystem.FileSystem, "create_stream", full)
    with pytest.raises(ReverieError, match=r"cannot write '.*00000003': the disk is full"):
        list(events)
    assert latest(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser": "muon"}, r"shard in \[run\] is for optimiser = adamw or lion in float32 or bfloat16, not"),
        ({"precision": "float16"}, "not optimiser = 'adamw', precision = 'float16'"),
    ],
)
def test_what_is_not_sharded(settings: dict[str, Any], message: str, toy: type) -> None:
    with pytest.raises(ReverieError, match=message):
        RunSettings(steps=1, lr=1.0, shard=True, **settings)
    with pytest.raises(ReverieError, match=r"shard in \[run\] is for U-Nets, ControlNets and CLIP; leave it out"):
        Learner(toy(), RunSettings(steps=1, lr=1.0, shard=True))
