"""Does a compiled network answer as the plain one, is it compiled once a size, and does it see what is put into it?

torch traces here for a compiler that counts, and runs what it traced; `-m slow` lets the real one compile.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

import reverie
from reverie.adapters import lora
from reverie.adapters.ip_adapter import cross_attentions
from reverie.errors import ReverieError
from reverie.models.layers import attend
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage
from reverie.runtime.changes import attending, freeing, merging, reusing, seamless
from reverie.runtime.compiled import FOLDER, CompiledUNet, compile_network, is_compiled, keep_in

BEAR = TextToImage(prompt="a bear", negative="red", seed=7, steps=3)


class Counting:
    """Compile nothing: run what was traced, write over the last output as a CUDA graph's replay does, and count."""

    def __init__(self) -> None:
        self.graphs, self.calls = 0, 0

    def __call__(self, graph: fx.GraphModule, example: object) -> Any:
        self.graphs += 1
        kept: list[Tensor] = []

        def run(*given: Any) -> Any:
            self.calls += 1
            answers = graph.forward(*given)
            if not kept:
                kept.extend(answers)
            for before, now in zip(kept, answers, strict=True):
                before.copy_(now)
            return tuple(kept)

        return run


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Let torch trace the networks anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(system: Pipeline) -> tuple[Pipeline, Counting]:
    """Copy a system and compile the copy's networks."""
    ours, counting = copy.deepcopy(system), Counting()
    compile_network(ours.unet, counting)
    compile_network(ours.autoencoder.decoder, counting)
    return ours, counting


def given(side: int, rows: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(side)
    return torch.randn(rows, 4, side, side), torch.full((rows,), 500.0), torch.randn(rows, 12, 16)


def test_pictures_are_the_same_and_each_size_is_compiled_once(tiny: Pipeline) -> None:
    ours, counting = made(tiny)
    for asked in (BEAR, BEAR.replace(width=48), BEAR):
        assert ours.draw(asked)[0].tobytes() == tiny.draw(asked)[0].tobytes()
    assert counting.graphs == 4  # two sizes of two networks, each in one piece
    assert counting.calls == 3 * (3 + 1)


@torch.no_grad()
def test_a_lora_comes_and_goes_without_compiling_again(tiny: Pipeline, ink: Path) -> None:
    ours, counting = made(tiny)
    plain, asked = copy.deepcopy(tiny), given(8)
    for system in (ours, plain):
        system.unet.requires_grad_(False)  # as what is loaded
    without = plain.unet(*asked)
    assert torch.equal(ours.unet(*asked), without)
    with lora.apply(plain, [(ink, 1.0, 1.0)]), lora.apply(ours, [(ink, 1.0, 1.0)]):
        assert torch.equal(ours.unet(*asked), plain.unet(*asked))
        assert not torch.allclose(ours.unet(*asked), without, atol=1e-3)
    assert torch.equal(ours.unet(*asked), without)
    assert (counting.graphs, counting.calls) == (1, 4)


@pytest.mark.slow  # tracing SDXL's U-Net twice takes half a minute
@torch.no_grad()
def test_residuals_of_a_controlnet_are_added(tiny_xl: Pipeline) -> None:
    ours, counting = made(tiny_xl)
    x, t, context = given(8)
    told = (torch.cat([context, context], -1), torch.randn(2, 16), torch.full((2, 6), 64.0))
    skips, middle = tiny_xl.unet.descend(tiny_xl.unet.conv_in(x), torch.zeros(2, 32), told[0])
    residuals = [torch.randn_like(output) for output in [*skips, middle]]
    for added in (None, residuals, None):
        assert torch.equal(ours.unet(x, t, *told, residuals=added), tiny_xl.unet(x, t, *told, residuals=added))
    assert (counting.graphs, counting.calls) == (2, 3)


def see_twice(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return 2 * attend(q, k, v, heads)


@torch.no_grad()
def test_what_changes_a_network_is_seen(tiny: Pipeline) -> None:
    """Also where it comes after compiling; then the plain class computes."""
    ours, counting = made(tiny)
    asked = given(8)
    without, later = ours.unet(*asked), ours.unet(asked[0], asked[1] - 20, asked[2])
    assert torch.equal(without, tiny.unet(*asked))  # also after another call
    assert not torch.equal(later, without)
    calls = counting.calls
    changes = (
        lambda unet: seamless([unet], "xy"),
        lambda unet: merging(unet, 0.5),
        lambda unet: reusing(unet, 2),
        lambda unet: freeing(unet, (1.5, 1.6, 0.9, 0.2)),
        lambda unet: attending({attention: see_twice for attention, _ in cross_attentions(unet)}),  # an IP-Adapter's
    )
    for change in changes:
        with change(tiny.unet), change(ours.unet):
            theirs = [tiny.unet(asked[0], t, asked[2]) for t in (asked[1], asked[1] - 20)]
            assert all(
                torch.equal(ours.unet(asked[0], t, asked[2]), answer)
                for t, answer in zip((asked[1], asked[1] - 20), theirs, strict=True)
            )
        assert isinstance(ours.unet, CompiledUNet)
    assert not torch.equal(theirs[1], without)
    assert counting.calls == calls
    assert torch.equal(ours.unet(*asked), without)
    assert counting.calls == calls + 1
    with torch.enable_grad():
        assert ours.unet(*asked).requires_grad


def test_names_saving_and_copies_stay(tiny: Pipeline, tmp_path: Path) -> None:
    ours, counting = made(tiny)
    assert is_compiled(ours.unet)
    assert not is_compiled(tiny.unet)
    assert [*ours.unet.state_dict()] == [*tiny.unet.state_dict()]
    ours.draw(BEAR)
    ours.save(tmp_path / "ours")
    tiny.save(tmp_path / "theirs")
    files = sorted(path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*") if path.is_file())
    assert any(path.suffix == ".safetensors" for path in files)
    for file in files:
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    calls, copied = counting.calls, copy.deepcopy(ours)
    assert copied.draw(BEAR)[0].tobytes() == tiny.draw(BEAR)[0].tobytes()
    assert counting.calls == calls


@torch.no_grad()
def test_nothing_is_read_from_the_device(tiny: Pipeline) -> None:
    """Of the meta device nothing can be read: a call that looks at a value would fail."""
    unet, counting = copy.deepcopy(tiny.unet).to("meta"), Counting()
    compile_network(unet, counting)
    assert unet(*(tensor.to("meta") for tensor in given(8))).device.type == "meta"
    assert (counting.graphs, counting.calls) == (1, 1)


@torch.no_grad()
def test_bad_input_and_a_failing_compiler_are_told_in_a_line(tiny: Pipeline) -> None:
    def failing(graph: fx.GraphModule, example: object) -> Any:
        raise OSError("no compiler here")

    ours, _ = made(tiny)
    x, t, context = given(8)
    with pytest.raises(ReverieError, match="U-Net input has 5 channels"):
        ours.unet(torch.cat([x, x[:, :1]], 1), t, context)
    unet = copy.deepcopy(tiny.unet)
    compile_network(unet, failing)
    with pytest.raises(ReverieError, match=r"torch cannot compile this model here: .*no compiler here") as caught:
        unet(x, t, context)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own, as its compiler comes
def test_what_is_compiled_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path))
    monkeypatch.setenv(FOLDER, "elsewhere")
    keep_in(tmp_path / "compiled")
    assert os.environ[FOLDER] == "elsewhere"
    monkeypatch.setenv(FOLDER, default_cache_dir())  # as torch does when its compiler comes
    loaded = reverie.load(device="cpu", fast=False, compile=True)
    assert is_compiled(loaded.unet)
    assert is_compiled(loaded.autoencoder.decoder)
    assert os.environ[FOLDER] == str(tmp_path / "compiled")
    monkeypatch.delenv(FOLDER)
    (tmp_path / "file").touch()
    with pytest.raises(ReverieError, match=r"cannot keep what is compiled in .*REVERIE_CACHE"):
        keep_in(tmp_path / "file" / "compiled")


SCRIPT = """
import sys, numpy, torch, reverie
from torch import nn
from torch._dynamo.utils import counters

torch.set_num_threads(1)
systems = [reverie.load(sys.argv[1], device="cpu", fast=False, compile=compile) for compile in (True, False)]

def answers(side):
    for system in systems:
        torch.manual_seed(side)
        x, t, told = torch.randn(2, 4, side, 4), torch.full((2,), 500.0), system.encode_prompt(["a bear", ""]).tokens
        with torch.no_grad():
            yield system.unet(x, t, told), system.autoencoder.decode(x[:1])

def compare(side):
    for mine, other in zip(*answers(side)):
        error = ((mine - other).norm() / other.norm()).item()
        assert error <= 1e-5, error
    pictures = [system.text_to_image("a bear", seed=7, steps=3, height=8 * side)[0] for system in systems]
    ours, theirs = (numpy.asarray(picture, numpy.int16) for picture in pictures)
    assert abs(ours - theirs).max() <= 1

for side in map(int, sys.argv[2:]):
    compare(side)
    merged = [system.unet.mid_block.resnets[0].conv1 for system in systems]
    before = [layer.weight for layer in merged]
    for layer in merged:  # as a LoRA does
        layer.weight = nn.Parameter(2 * layer.weight.detach(), requires_grad=layer.weight.requires_grad)
    compare(side)
    for layer, weight in zip(merged, before):
        layer.weight = weight
    compare(side)
print("made", counters["inductor"]["fxgraph_cache_miss"], "found", counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
def test_the_real_compiler_is_exact_and_finds_its_kernels_again(tiny: Pipeline, tmp_path: Path) -> None:
    """By C++ of two sizes: at most 1e-5 from the plain networks, and 1 of 255; a second process compiles nothing."""
    tiny.save(tmp_path / "model")
    environment = {**os.environ, "REVERIE_CACHE": str(tmp_path / "cache")}
    environment.pop(FOLDER, None)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), "4", "6"]
    said = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout for _ in "ab"]
    assert [line.strip() for line in said] == ["made 4 found 0", "made 0 found 4"]
