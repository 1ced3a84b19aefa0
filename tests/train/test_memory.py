"""What does a step of training hold in memory at most, by torch's own storages, and is it what is promised?"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from reverie.cli import app as cli
from reverie.errors import ReverieError
from reverie.models.clip import CLIPAttention
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.models.layers import Attention, TransformerBlock
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline
from reverie.train.cost import empty_, operations_of, peak_of
from reverie.train.finetune import build
from reverie.train.latents import open_pool
from reverie.train.layers import recompute_layers_
from reverie.train.loop import Learner, RunSettings
from reverie.train.objective import Countable, Objective
from reverie.train.optimisers import OPTIMISERS, make_optimisers
from reverie.train.plan import PLANNED, STATES, Hardware, blank_pool, plan
from reverie.train.recipe import OBJECTIVES, read, section

SMALL = UNetConfig(
    block_out_channels=(16, 32),
    layers_per_block=2,
    transformer_depth=(1, 1),
    num_heads=(2, 4),
    cross_attention_dim=16,
    norm_num_groups=4,
)


def held_at_most(step: Callable[[], object]) -> int:
    """Return the most bytes that torch's allocator gave out for a step at once, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(sizes))


def gradients(unet: UNet, control: ControlNet, size: int) -> tuple[list[Tensor], int]:
    """Return the gradients of a step of both, and the most bytes that it held."""
    torch.manual_seed(3)
    x, t, context = torch.randn(2, 4, size, size), torch.tensor([5, 900]), torch.randn(2, 7, 16)
    hint = torch.rand(2, 3, 8 * size, 8 * size)

    def step() -> None:
        residuals = control(x, t, context, control.embed_hint(hint))
        unet(x, t, context, residuals=residuals).square().mean().backward()

    most = held_at_most(step)
    return [parameter.grad for network in (unet, control) for parameter in network.parameters()], most


def test_layers_computed_twice_hold_less_and_learn_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.ModuleList([UNet(SMALL), ControlNet(ControlNetConfig(SMALL, hint_widths=(4, 4, 4, 4)))])
    for parameter in plain[1].controlnet_down_blocks.parameters():
        nn.init.normal_(parameter)
    names = list(plain.state_dict())
    expected, whole = gradients(*plain, size=16)
    plain.zero_grad(set_to_none=True)
    recompute_layers_(plain)
    assert list(plain.state_dict()) == names
    found, spared = gradients(*plain, size=16)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert spared < 0.6 * whole, (spared, whole)


RECIPE = """
objective = "finetune"
[run]
steps = 10
lr = 1e-3
ema = 0.9
threads = 1
device = "cpu"
{run}
[model]
base = "{folder}/base"
[data]
pictures = "{folder}/pictures"
caption = "a bear"
batch = 4
size = 128
{tables}
"""
KINDS = {
    "whole": "",
    "text": "[text]\npace = 0.5",
    "lora": "[lora]\nrank = 2",
    "control": '[control]\ndetect = "canny"',
}


@pytest.fixture(scope="module")
def recipe(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("memory")
    tiny.save(folder / "base")
    (folder / "pictures").mkdir()
    (folder / "pictures/0.png").write_bytes(b"no picture")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3), np.uint8), 1):
        Image.fromarray(pixels).save(folder / f"pictures/{number}.png")

    def write(tables: str = "", run: str = "") -> Path:
        (path := folder / "recipe.toml").write_text(RECIPE.format(folder=folder, tables=tables, run=run))
        return path

    return write


@pytest.mark.parametrize("recomputed", ["", "recompute_layers = true"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_tells_what_a_step_holds(
    recipe: Callable[..., Path], tmp_path: Path, kind: str, recomputed: str
) -> None:
    path = recipe(KINDS[kind], recomputed)
    planned = build(read(path), 0, tmp_path / "none", blank_pool)
    assert_planned(planned, build(read(path), 0, tmp_path, open_pool), path)
    assert not (tmp_path / "none").exists()


def assert_planned(planned: Countable, real: Objective, path: Path) -> None:
    """Compare within 10 % with what torch's allocator says of a real step, without the optimiser's share."""
    settings = section(read(path), "run", RunSettings)
    learner = Learner(real, settings)

    def step() -> None:
        for group, loss, _ in real.losses(settings.steps - 1):
            torch.autograd.backward(loss, inputs=learner.groups[group])
            for weight in learner.groups[group]:
                weight.grad = None

    step()  # what is made once and kept is no part of it
    held = held_at_most(step)
    empty_(planned)
    if settings.recompute_layers:
        recompute_layers_(planned.backbones())  # type: ignore[attr-defined]
    assert peak_of(planned, settings) == pytest.approx(held, rel=0.1)


AUTOENCODER = """
[model]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
[loss]
adversarial = 0.1
adversarial_width = 8
"""
CLIP = """
[text]
vocabulary = 600
length = 16
width = 16
layers = 2
heads = 2
captions = 300
[vision]
width = 128
layers = 3
heads = 2
[contrast]
batch = 8
projection = 16
"""
DISTILLATION = RECIPE[RECIPE.index("[model]") : RECIPE.index("{tables}")] + "[distill]\nphases = 2\n"
OTHERS = {
    "autoencoder": ("autoencoder", AUTOENCODER),
    "clip": ("clip", CLIP),
    "chunks": ("clip", f"{CLIP}chunk = 2\n"),
    "adversary": ("distill", f"{DISTILLATION}[adversary]\nweight = 0.1\nwidth = 4\n"),
    "thin": ("distill", f"{DISTILLATION}[lora]\nrank = 2\n"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_plan_tells_what_a_step_of_each_objective_holds(
    recipe: Callable[..., Path], tmp_path: Path, corpus: None, kind: str
) -> None:
    name, tables = OTHERS[kind]
    folder, run = recipe().parent, RECIPE[: RECIPE.index("[model]")].replace("finetune", name)
    (path := tmp_path / "recipe.toml").write_text((run + tables).format(folder=folder, run=""))
    build = import_module(OBJECTIVES[name][0]).build
    real = build(read(path), 0, tmp_path / "real")
    assert_planned(build(read(path), 0, tmp_path / "none", **PLANNED[name]), real, path)
    assert not (tmp_path / "none").exists()


def test_a_plan_counts_the_operations_of_a_step(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """By shapes, exactly: layers work once there, and back for weights and input each, attention 2.5 times as much."""
    path = recipe(KINDS["whole"])
    objective = build(read(path), 0, tmp_path, open_pool)
    unet, (tower,) = objective.components.unet, objective.components.text_encoders
    deaf = {unet.conv_in, unet.time_embedding.linear_1}  # whose input learns nothing
    deaf |= {layer for block in unet.modules() if isinstance(block, TransformerBlock) for layer in keys_of(block.attn2)}
    counted: list[float] = []

    def count(layer: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        learns = layer in learning
        if isinstance(layer, Attention | CLIPAttention):
            rows, tokens, width = given[0].shape
            length = tokens if len(given) == 1 or given[1] is None else given[1].shape[1]
            counted.append(4 * rows * tokens * length * width * (3.5 if learns else 1))
        else:
            inputs = layer.weight[0].numel()  # type: ignore[union-attr,index]
            counted.append(2 * out.numel() * inputs * (1 + learns + (learns and layer not in deaf)))

    learning = {*unet.modules()}
    for layer in (*unet.modules(), *tower.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | Attention | CLIPAttention):
            layer.register_forward_hook(count)
    next(objective.losses(0))
    plain = section(read(path), "run", RunSettings)
    empty_(planned := build(read(path), 0, tmp_path / "none", blank_pool))
    assert operations_of(planned, plain) == sum(counted)


def keys_of(attention: Attention) -> list[nn.Module]:
    return [attention.to_k, attention.to_v]


def test_a_plan_names_every_cost(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(KINDS["lora"], "accumulate = 2\nshard = true")
    assert cli.run(["finetune", str(path), "--plan"]) == 0
    lines = {line[:11].rstrip(): line[11:] for line in capsys.readouterr().out.splitlines()}
    objective = build(read(path), 0, path.parent, blank_pool)
    learned = sum(weight.numel() for weight in objective.networks.parameters())
    held = sum(weight.numel() for network in {*objective.backbones()} for weight in network.parameters()) - learned
    assert lines["learns"] == f"{learned:,} parameters"
    assert lines["optimiser"].startswith(f"{8 * learned / 1e3:.1f} kB")
    assert lines["average"] == f"{4 * learned / 1e3:.1f} kB"
    assert lines["sharded"].startswith(f"{4 * (held + 4 * learned) / 1e3:.1f} kB of this")
    assert re.fullmatch(r"[\d.]+ M a step, [\d.]+ G in all, there and back", lines["operations"])
    assert lines["examples"].startswith("40 in 10 steps, 6.7 times 6, latents of")
    assert not (path.parent / "runs").exists()
    (path := path.with_name("judge.toml")).write_text('objective = "classifier"\n[run]\nsteps = 1\nlr = 1\n')
    with pytest.raises(ReverieError, match="the costs of the objective classifier cannot be told ahead"):
        list(plan(path))


@pytest.mark.parametrize(
    ("share", "found"), [(0.9, "accumulate = 2"), (0.6, "shard = true"), (0.45, "recompute_layers = true")]
)
def test_a_plan_says_what_makes_it_fit(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], share: float, found: str
) -> None:
    def lines(run: str, *, memory: float = 1e9) -> dict[str, str]:
        machine = f"gpus=2,memory={memory:.0f}B,rate=0.5kFLOP/s"
        assert cli.run(["finetune", str(recipe(run=run)), "--plan", machine]) == 0
        return {line[:11].rstrip(): line[11:] for line in capsys.readouterr().out.splitlines()}

    ample = lines("")
    assert ample["fits"].startswith("yes: ")
    scarce = lines("", memory=share * bytes_of(ample["in all"]))
    assert scarce["fits"].startswith("no: ")
    needed, changes = scarce[""].split(" with ")
    assert found in changes
    mended = lines(changes.replace(", ", "\n"), memory=share * bytes_of(ample["in all"]))
    assert mended["fits"].startswith(f"yes: {needed} of ")
    assert mended["in all"].startswith(f"{needed} at most")
    operations = 1e9 * float(ample["operations"].split(", ")[1].split()[0])
    days = operations / 1000 / 24 / 3600  # by two, at 500 a second
    assert float(ample["time"].split()[0]) == pytest.approx(days, rel=0.05)
    assert "even with all that spares memory" in lines("", memory=1e3)[""]


def bytes_of(text: str) -> float:
    number, unit = text.split()[:2]
    return float(number) * {"kB": 1e3, "MB": 1e6}[unit]


@pytest.mark.parametrize(
    "text", ["", "gpus=0", "gpus=1.5", "memory=80", "memory=1.2.3GB", "rate=8TB", "gpu=8", "gpus=8,", "gpus=8,gpus=4"]
)
def test_a_machine_that_is_none_gets_one_line(text: str) -> None:
    with pytest.raises(ReverieError, match=r"of a machine is not possible; write gpus=8,memory=80GB,rate=100TFLOP/s"):
        Hardware.of(text)


@pytest.mark.parametrize(
    ("machine", "message"), [("", "'' of a machine is not possible"), ("gpus=3", "does not divide into 3 parts")]
)
def test_what_cannot_be_planned_gets_one_line_alone(
    recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], machine: str, message: str
) -> None:
    path = recipe()
    assert cli.run(["finetune", str(path), f"--plan={machine}"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert message in said.err
    assert not (path.parent / "runs").exists()


def test_a_machine_is_read() -> None:
    assert Hardware.of("gpus=8,memory=80GB,rate=1.5TFLOP/s") == Hardware(8, 80e9, 1.5e12)
    assert Hardware.of("memory=640kB") == Hardware(1, 640e3)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_keep_as_many_numbers_as_told(name: str) -> None:
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((6, 8), (5,), (4, 3, 2, 2))]
    settings = RunSettings(steps=1, lr=1.0, optimiser=name)
    try:
        made = make_optimisers(weights, settings, {})
    except ReverieError:
        pytest.skip("needs the extra `train`")
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    for optimiser in made.values():
        optimiser.step()
    kept = [value for one in made.values() for state in one.state.values() for value in state.values()]
    counted = sum(value.numel() for value in kept if isinstance(value, Tensor) and value.numel() > 1)
    assert counted == pytest.approx(sum(STATES[name](weight.shape) for weight in weights), abs=3)
