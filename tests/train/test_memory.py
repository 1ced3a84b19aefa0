"""What does a step of training hold in memory at most, by torch's own storages, and is it what is promised?"""

from __future__ import annotations

import re
from collections.abc import Callable
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
from reverie.train.finetune import build
from reverie.train.latents import open_pool
from reverie.train.layers import recompute_layers_
from reverie.train.loop import Learner, RunSettings
from reverie.train.optimisers import OPTIMISERS, make_optimisers
from reverie.train.plan import STATES, blank_pool, cost_of_step, plan
from reverie.train.recipe import read, section

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
    """Within 10 % of what torch's allocator says of a real step, without the optimiser's share."""
    path = recipe(KINDS[kind], recomputed)
    sections, settings = read(path), section(read(path), "run", RunSettings)
    learner = Learner(build(sections, 0, tmp_path, open_pool), settings)
    objective = learner.objective

    def step() -> None:
        for _, loss, _ in objective.losses(0):
            torch.autograd.backward(loss, inputs=learner.groups["unet"])

    step()  # what is made once and kept is no part of it
    objective.networks.zero_grad(set_to_none=True)
    held = held_at_most(step)
    told = cost_of_step(build(sections, 0, tmp_path / "none", blank_pool), settings).memory
    assert told == pytest.approx(held, rel=0.1)
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
    told = cost_of_step(build(read(path), 0, tmp_path / "none", blank_pool), plain)
    assert told.operations == sum(counted)


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
    path.write_text(path.read_text().replace('"finetune"', '"distill"'))
    with pytest.raises(ReverieError, match="the costs of the objective distill cannot be told ahead"):
        list(plan(path))


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
