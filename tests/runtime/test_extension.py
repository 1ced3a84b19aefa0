"""Do the kernels in C compute what torch's operators do?"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import random
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.errors import RequestWarning, ReverieError
from reverie.models.layers import Attention, GroupNormSiLU, ResidualBlock, Upsample
from reverie.models.unet import UNet
from reverie.runtime import extension, int8, kernels, layers, native, pack, plans, quantize, transform, unpack
from reverie.runtime.changes import freeing, merging, perturbing, reusing, seamless
from reverie.runtime.extension import MODES, convolve_small, lay_panels, multiply
from reverie.runtime.layers import LAST, FastGroupNorm, FastGroupNormSiLU
from reverie.runtime.plans import FastUNet, PlannedCall, PlannedLevels, Slot, lay_out

from .test_exact import UNET, error, given


@pytest.fixture(autouse=True)
def everything_is_narrow(everything_is_wide: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave narrow products and small convolutions to the kernels in C."""
    monkeypatch.setattr(transform, "WIDE", 256)
    monkeypatch.setattr(layers, "SMALL", extension.SMALL)


pytestmark = pytest.mark.skipif(extension.library() is None, reason="no compiler built the extension")


def test_a_build_that_does_not_load_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for build in extension.BUILDS:
        (tmp_path / (build + EXTENSION_SUFFIXES[0])).write_bytes(b"not a library")
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    assert extension.library.__wrapped__() is None


def test_a_build_older_than_its_sources_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = extension.library()
    assert held is not None
    for build in extension.BUILDS:
        shutil.copyfile(held._name, tmp_path / (build + EXTENSION_SUFFIXES[0]))
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    assert extension.library.__wrapped__() is not None
    source = tmp_path / "c" / "norms.c"
    source.parent.mkdir()
    source.write_text("")
    os.utime(source, (time.time() + 60,) * 2)
    with pytest.warns(RequestWarning, match="older than their sources"):
        assert extension.library.__wrapped__() is None


@pytest.mark.parametrize(
    ("limit", "build"), [("ALL", "_amx"), ("AVX512_CORE_AMX", "_amx"), ("AVX512_CORE_BF16", "_avx512")]
)
def test_a_limit_below_amx_leaves_the_tiles_out(
    limit: str, build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for oneDNN, whose variable it is."""
    for name in extension.BUILDS:
        (tmp_path / (name + EXTENSION_SUFFIXES[0])).touch()
    every = dict.fromkeys((feature for needed in extension.BUILDS.values() for feature in needed), True)
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: every)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: path)
    monkeypatch.setattr(kernels, "has_tiles", kernels.has_tiles.__wrapped__)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert Path(str(extension.library.__wrapped__())).name.startswith(build + ".")


@pytest.mark.parametrize(
    ("images", "channels", "side", "groups"),
    [(2, 320, 32, 32), (3, 48, 16, 16), (1, 20, 5, 4), (2, 14, 3, 7), (1, 128, 130, 32)],
)
@pytest.mark.parametrize("with_silu", [False, True])
def test_group_norm_is_that_of_torch(images: int, channels: int, side: int, groups: int, with_silu: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(images, channels, side, side, generator=generator, dtype=torch.float64) * 3 + 5
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    wanted = F.group_norm(x, groups, weight, bias, 1e-5)
    wanted = F.silu(wanted) if with_silu else wanted
    got = x.float().contiguous(memory_format=torch.channels_last)
    operands = (got, got, weight.float(), bias.float(), images, side * side, channels, groups, 1e-5, int(with_silu))
    extension.call("group_norm", *operands)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_of_a_large_mean_errs_no_more_than_torch(dtype: torch.dtype) -> None:
    x = torch.randn(2, 48, 16, 16, generator=torch.Generator().manual_seed(3)) + 100
    x = x.to(dtype).contiguous(memory_format=LAST)
    norm = nn.GroupNorm(16, 48).to(dtype)
    wanted = norm.double()(x.double())
    own = pack(nn.Sequential(nn.Conv2d(24, 24, 3), copy.deepcopy(norm.to(dtype))))[1]
    off, bound = ((module(x).double() - wanted).abs().max() for module in (own, norm))
    assert off < 2 * bound


def fast(norm: nn.GroupNorm) -> nn.GroupNorm:
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return pack(nn.Sequential(nn.Conv2d(24, 24, 3), norm))[1]


def image(layout: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.randn(2, 24, 9, 7, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "swapped"), [(nn.GroupNorm, FastGroupNorm), (GroupNormSiLU, FastGroupNormSiLU)])
def test_norms_go_by_the_extension_where_they_can(
    kind: type[nn.GroupNorm], swapped: type[nn.GroupNorm], monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, called, call = fast(kind(4, 24, eps=1e-3)), [], extension.call

    def count(name: str, *operands: Tensor | int | float | None) -> None:
        called.append(name)
        call(name, *operands)

    monkeypatch.setattr(extension, "call", count)
    assert type(norm) is swapped
    for x in (image(), image(torch.contiguous_format), image().double()):
        wanted = kind.forward(norm.to(x.dtype), x)
        torch.testing.assert_close(norm(x), wanted, rtol=1e-5, atol=1e-5)
    assert called == ["group_norm"]  # the first alone: float32, channels-last
    with torch.enable_grad():
        norm.float()(image().requires_grad_()).sum().backward()
    assert called == ["group_norm"]
    assert norm.weight.grad is not None


@pytest.mark.parametrize(("channels", "side", "groups"), [(320, 16, 32), (14, 7, 7), (20, 5, 4)])
@pytest.mark.parametrize("with_silu", [False, True])
def test_group_norm_in_bfloat16_errs_no_more_than_torch(channels: int, side: int, groups: int, with_silu: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    x = (torch.randn(2, channels, side, side, generator=generator) * 3 + 5).bfloat16()
    weight, bias = torch.randn(2, channels, generator=generator).bfloat16()
    norm = GroupNormSiLU(groups, channels) if with_silu else torch.nn.GroupNorm(groups, channels)
    norm = norm.bfloat16().requires_grad_(False)
    norm.weight.copy_(weight), norm.bias.copy_(bias)
    wanted = F.group_norm(x.double(), groups, weight.double(), bias.double(), norm.eps)
    wanted = F.silu(wanted) if with_silu else wanted
    error = {}
    for kind in (type(norm), FastGroupNormSiLU if with_silu else FastGroupNorm):
        norm.__class__ = kind
        with torch.inference_mode():
            got = norm(x.contiguous(memory_format=torch.channels_last))
        error[kind] = (got.double() - wanted).norm() / wanted.norm()
    plain, fast = error.values()
    assert 0 < fast <= plain


@torch.no_grad()
@pytest.mark.parametrize(("rows", "width", "made"), [(1, 5, 3), (7, 48, 96), (33, 160, 50), (512, 20, 144)])
@pytest.mark.parametrize("mode", MODES)
def test_narrow_products(rows: int, width: int, made: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, width), (made, width), (made,), (rows, made))
    )
    plain = F.linear(x, weight, bias)
    wanted = {"plain": plain, "gelu": F.gelu(plain), "add": plain + other, "multiply": plain * other}[mode]
    got = multiply(x.float(), lay_panels(weight.float()[:, None]), bias.float(), made, mode, other.float())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("images", "channels", "made", "size"),
    [(2, 48, 96, (8, 8)), (1, 20, 17, (5, 3)), (3, 5, 50, (1, 4)), (1, 160, 16, (9, 1))],
)
def test_small_convolutions(images: int, channels: int, made: int, size: tuple[int, int], stride: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(images, channels, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(made, channels, 3, 3, generator=generator, dtype=torch.float64) / (9 * channels) ** 0.5
    bias = torch.randn(made, generator=generator, dtype=torch.float64)
    plain = F.conv2d(x, weight, bias, stride=stride, padding=1)
    given, panels = x.float().contiguous(memory_format=LAST), lay_panels(weight.float().flatten(2).mT)
    for add in (torch.randn_like(plain), torch.randn_like(plain[:, :, :1, :1])):
        added = add.float().contiguous(memory_format=LAST)
        got = convolve_small(given, panels, bias.float(), made, stride=stride, add=added)
        torch.testing.assert_close(got.double(), plain + add, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_small_images_are_doubled_by_corners() -> None:
    upsample = Upsample(24)
    fast = pack(nn.Sequential(Upsample(24)))[0]
    fast.load_state_dict(upsample.state_dict())
    for x in (image(), image()[:1, :, :2]):
        torch.testing.assert_close(fast(x), upsample(x), rtol=1e-5, atol=1e-5)
    fast.conv.weight.mul_(2)
    upsample.conv.weight.mul_(2)
    torch.testing.assert_close(fast(image()), upsample(image()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_layer_norms() -> None:
    norm = nn.LayerNorm(37)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 37, generator=torch.Generator().manual_seed(5)) * 3 + 8
    wanted = norm.double()(x.double())
    fast = pack(nn.Sequential(nn.Linear(256, 256), norm.float()))[1]
    torch.testing.assert_close(fast(x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def planned() -> tuple[UNet, UNet]:
    """Return a U-Net without attention, all of whose levels are the kernels', fast and plain."""
    torch.manual_seed(0)
    config = replace(UNET, transformer_depth=(0, 0), mid_transformer_depth=0, block_out_channels=(32, 48))
    plain = UNet(config).eval()
    return pack(copy.deepcopy(plain)), plain


def ways(unet: UNet) -> list[Any]:
    """Return the plans' `repeat`, or what else the U-Net does at each size."""
    assert isinstance(unet, FastUNet)
    return list(unet.planned.ways.values()) if unet.planned is not None else []


def twice(unet: UNet, inputs: tuple[Tensor, ...]) -> None:
    """Let a plan be written."""
    for _ in range(2):
        unet(*inputs)
    (way,) = ways(unet)
    assert isinstance(way.__self__, PlannedLevels)


def attentive() -> tuple[UNet, UNet]:
    """Return a U-Net with attention, whose heads are as wide as the kernel's, fast and plain."""
    torch.manual_seed(0)
    plain = UNet(replace(UNET, block_out_channels=(32, 48))).eval()
    return pack(copy.deepcopy(plain)), plain


@torch.no_grad()
@pytest.mark.parametrize("attention", [False, True])
def test_what_a_small_unet_calls_is_repeated(planned: tuple[UNet, UNet], attention: bool) -> None:
    fast, plain = attentive() if attention else planned
    x, t, context = given()
    twice(fast, (x, t, context))
    for seed in (1, 2, 3):
        x = x + seed
        assert error(fast(x, t, context), plain(x, t, context)) < 1e-5
        assert error(fast(x, t * 0.5, context + 1), plain(x, t * 0.5, context + 1)) < 1e-5
        context.mul_(0.5)
    fast_answer = fast(x, t, context)
    before = fast_answer.clone()
    fast(x + 1, t, context)
    assert torch.equal(fast_answer, before)  # not the plan's own memory
    assert torch.equal(fast(x, t, context), before)


@torch.no_grad()
def test_a_plan_gives_the_same_bits() -> None:
    fast, _ = attentive()
    x, t, context = given()
    answers = [fast(x, t, context) for _ in range(4)]
    assert all(torch.equal(answer, answers[0]) for answer in answers[1:])
    assert torch.equal(fast(x + 1, t, context + 1), pack(copy.deepcopy(attentive()[1]))(x + 1, t, context + 1))


def test_what_is_needed_at_the_same_time_lies_apart_in_an_arena() -> None:
    chance = random.Random(0)
    for _ in range(50):
        slots = [Slot(lasting=False, size=64 * chance.randrange(1, 30)) for _ in range(40)]
        lives = [sorted(chance.sample(range(30), 2)) for _ in slots]
        uses = [[slot for slot, life in zip(slots, lives, strict=True) if index in life] for index in range(30)]
        done = [[slot for slot, life in zip(slots, lives, strict=True) if index == life[1]] for index in range(30)]
        size = lay_out(uses, done, 128)
        spans = list(zip(slots, lives, strict=True))
        for one, (first, last) in spans:
            assert 128 <= one.start <= size - one.size
            for other, (start, end) in spans:
                if one is not other and start <= last and first <= end:
                    assert one.start + one.size <= other.start or other.start + other.size <= one.start
        most = max(sum(one.size for one, life in spans if life[0] <= index <= life[1]) for index in range(30))
        assert most <= size - 128 < 1.6 * most


WRITES_A_PLAN = """
import sys, torch
from reverie.models.unet import UNet, UNetConfig
from reverie.runtime import pack
widths = dict(block_out_channels=(32, 48), num_heads=(4, 4), layers_per_block=1, transformer_depth=(0, 0))
unet = pack(UNet(UNetConfig(**widths, mid_transformer_depth=0, cross_attention_dim=32, norm_num_groups=4)).eval())
with torch.no_grad():
    for _ in range(3):
        unet(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 3, 32))
(way,) = unet.planned.ways.values()
print(type(way.__self__).__name__, "torch._dynamo" in sys.modules)
"""


def test_writing_a_plan_does_not_import_torchs_compiler() -> None:
    ran = subprocess.run([sys.executable, "-c", WRITES_A_PLAN], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["PlannedLevels", "False"]


@torch.no_grad()
def test_sizes_have_plans_of_their_own(planned: tuple[UNet, UNet]) -> None:
    fast, plain = attentive()
    x, t, context = given()
    for _ in range(3):
        for wide, words in ((8, 3), (4, 3), (4, 5)):
            inputs = x[..., :wide], t, context[:, :words].contiguous()
            assert error(fast(*inputs), plain(*inputs)) < 1e-5
            inputs = inputs[0][:1], t[:1], inputs[2][:1]
            assert error(fast(*inputs), plain(*inputs)) < 1e-5


@torch.no_grad()
def test_a_plan_is_written_anew_where_a_weight_is_another(planned: tuple[UNet, UNet]) -> None:
    fast, plain = planned
    inputs = given()
    twice(fast, inputs)
    for unet in (fast, plain):
        unet.mid_block.resnets[0].conv1.weight.mul_(3)
        unet.mid_block.resnets[0].norm1.bias.add_(1)
        unet.up_blocks[0].resnets[0].conv2.weight = nn.Parameter(unet.up_blocks[0].resnets[0].conv2.weight * 2)
    assert error(fast(*inputs), plain(*inputs)) < 1e-5
    twice(fast, inputs)
    for unet in (fast, plain):
        unet.half().float()  # torch does not count this
    assert error(fast(*inputs), plain(*inputs)) < 1e-5
    twice(fast, inputs)
    other = copy.deepcopy(plain.mid_block.resnets[0])
    other.conv2.weight.mul_(2)
    for unet in (fast, plain):
        unet.mid_block.resnets[0] = other
    assert error(fast(*inputs), plain(*inputs)) < 1e-5


def test_weights_whose_writes_are_not_counted_have_no_plan() -> None:
    with torch.inference_mode():
        fast, plain = attentive()
        inputs = given()
        for _ in range(3):
            for unet in (fast, plain):
                unet.mid_block.attentions[0].proj_in.weight.mul_(1.5)
                unet.mid_block.resnets[0].conv1.weight.mul_(1.5)
            assert error(fast(*inputs), plain(*inputs)) < 1e-5


@torch.no_grad()
def test_who_looks_into_a_planned_unet_sees_all(planned: tuple[UNet, UNet]) -> None:
    fast, plain = attentive()
    x, t, context = inputs = given()
    twice(fast, inputs)
    before = fast(*inputs)
    for change in (
        lambda unet: seamless([unet], "xy"),
        lambda unet: merging(unet, 0.5),
        lambda unet: freeing(unet, (1.2, 1.4, 0.9, 0.2)),
        lambda unet: reusing(unet, 2),
        perturbing,
    ):
        with change(fast), change(plain):
            assert error(fast(*inputs), plain(*inputs)) < 1e-5
            if change is not reusing:
                assert error(fast(x + 1, t - 1, context), plain(x + 1, t - 1, context)) < 1e-5
        assert torch.equal(fast(*inputs), before)
    skips, middle = plain.descend(plain.conv_in(x), plain._embed(t, None, None), context)
    residuals = [torch.ones_like(output) for output in (*skips, middle)]
    assert error(fast(*inputs, residuals=residuals), plain(*inputs, residuals=residuals)) < 1e-5
    for unet in (fast, plain):
        unet.mid_block.resnets[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert error(fast(*inputs), plain(*inputs)) < 1e-5
    fast.requires_grad_(True)
    with torch.enable_grad():
        assert fast(*inputs).requires_grad


@torch.no_grad()
def test_what_torch_computes_is_repeated_too(planned: tuple[UNet, UNet]) -> None:
    fast, plain = planned
    fast.mid_block.resnets[0].__class__ = ResidualBlock
    x, t, context = given()
    twice(fast, (x, t, context))
    for seed in (1, 2):
        assert error(fast(x + seed, t, context), plain(x + seed, t, context)) < 1e-5


class Scaled(ResidualBlock):
    """Compute what depends on an attribute, as adapters of peft do."""

    scale = 2.0

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return super().forward(x, emb) * self.scale


@torch.no_grad()
def test_what_a_foreign_module_is_told_counts_at_once(planned: tuple[UNet, UNet]) -> None:
    fast, plain = planned
    for unet in planned:
        unet.mid_block.resnets[0].__class__ = Scaled
    for scale in (2.0, 2.0, 2.0, 5.0):
        for unet in planned:
            unet.mid_block.resnets[0].scale = scale
        assert error(fast(*given()), plain(*given())) < 1e-5


class Looking(ResidualBlock):
    """Compute what depends on a number that Python looks at."""

    __module__ = ResidualBlock.__module__

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return super().forward(x, emb) * (2 if x.mean().item() > 0 else 3)


@torch.no_grad()
def test_where_python_looks_at_numbers_nothing_is_repeated(planned: tuple[UNet, UNet]) -> None:
    fast, plain = planned
    for unet in planned:
        unet.mid_block.resnets[0].__class__ = Looking
    x, t, context = given()
    for seed in range(6):
        inputs = x + seed - 3, t, context
        assert error(fast(*inputs), plain(*inputs)) < 1e-5
    assert not isinstance(ways(fast)[0].__self__, PlannedLevels)


@torch.no_grad()
def test_an_interrupted_plan_is_repeated_whole(planned: tuple[UNet, UNet], monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = attentive()
    x, t, context = inputs = given()
    twice(fast, inputs)
    (way,) = ways(fast)
    plan, other = way.__self__.plan, context + 1

    def stop(tensors: list[Any]) -> None:
        raise KeyboardInterrupt

    for calls in ("first", "then"):
        held = list(getattr(plan, calls))
        getattr(plan, calls)[len(held) // 2 :] = [stop] if calls == "first" else [(stop, [])]
        with pytest.raises(KeyboardInterrupt):
            fast(x + 1, t, other)
        getattr(plan, calls)[:] = held
        assert error(fast(x, t, context), plain(x, t, context)) < 1e-5
        assert error(fast(x, t, other), plain(x, t, other)) < 1e-5


@torch.no_grad()
def test_what_is_unpacked_is_held_by_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform, "WIDE", 16)
    fast, _ = attentive()
    twice(fast, given())
    part = weakref.ref(fast.mid_block.attentions[0].proj_in.store.parts[0])
    unpack(fast)
    gc.collect()
    assert part() is None


WIDTHS = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.2}
"""By how a network computes: how far it is from float32."""


@torch.no_grad()
@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("kept", [0, 2**26])
def test_a_packed_unet_repeats_its_calls_to_the_bit(kind: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "KEPT", kept)
    monkeypatch.setattr(layers, "SMALL", 0)
    monkeypatch.setattr(transform, "WIDE", 16)
    if not (native(torch.bfloat16) if kind == "bfloat16" else kind == "float32" or int8.available()):
        pytest.skip("this processor does not compute so")
    plain = UNet(replace(UNET, transformer_depth=(1, 1))).eval()
    torch.manual_seed(0)
    for weight in plain.parameters():
        weight.normal_(std=0.05) if weight.dim() > 1 else weight.add_(0.1)
    unet = copy.deepcopy(plain).to(torch.bfloat16) if kind == "bfloat16" else copy.deepcopy(plain)
    fast = (quantize if kind == "int8" else pack)(unet)
    dtype = next(fast.parameters()).dtype
    x, t, context = given(side=(16, 24))
    prompts = [context.to(dtype), (context + 1).to(dtype)]
    inputs = [((x + seed).to(dtype), t - 50 * seed, prompts[seed // 2 % 2]) for seed in range(8)]
    with monkeypatch.context() as without:
        without.setattr(plans, "MOST", 0)
        wanted = [fast(*one) for one in inputs]
    answers = [fast(*one) for one in inputs]
    if kind != "int8" or int8.fuses():
        assert isinstance(ways(fast)[0].__self__, PlannedLevels)
    assert all(map(torch.equal, answers, wanted))
    for one, answer in zip(inputs, answers, strict=True):
        assert error(answer.float(), plain(one[0].float(), one[1], one[2].float())) < WIDTHS[kind]


def test_threads_that_share_a_planned_unet_get_what_each_gets_alone() -> None:
    fast, _ = attentive()
    x, t, context = given()
    prompts = [context, context + 1, context * 2]

    def draw(prompt: Tensor) -> list[Tensor]:
        with torch.no_grad():
            made = [x]
            for _ in range(20):
                made.append(fast(made[-1] * 0.9, t, prompt))
            return made[1:]

    draw(context)
    alone = [draw(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(draw, prompts))
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one, other))


def test_copies_of_a_planned_unet_are_without_its_plans(planned: tuple[UNet, UNet]) -> None:
    fast, plain = planned
    inputs = given()
    with torch.no_grad():
        twice(fast, inputs)
        again = copy.deepcopy(fast)
        assert again.planned is None
        again.mid_block.resnets[0].conv1.weight.mul_(3)
        assert error(fast(*inputs), plain(*inputs)) < 1e-5
    assert type(unpack(again)) is UNet
    assert "planned" not in vars(again)


def test_a_copy_made_while_reusing_has_no_plans(planned: tuple[UNet, UNet]) -> None:
    fast, _ = planned
    with torch.no_grad():
        twice(fast, given())
    with reusing(fast, 2):
        again = copy.deepcopy(fast)
    assert vars(again)["planned"] is None


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (nn.GroupNorm, "eps", lambda eps: 0.1),
        (nn.GroupNorm, "num_groups", lambda groups: groups // 2),
        (nn.LayerNorm, "eps", lambda eps: 0.1),
        (Attention, "heads", lambda heads: 2 * heads),
    ],
)
def test_settings_written_by_hand_end_the_plans(kind: type[nn.Module], name: str, change: Callable[[Any], Any]) -> None:
    fast, plain = attentive()
    inputs = given()
    twice(fast, inputs)
    for unet in (fast, plain):
        for module in unet.modules():
            if isinstance(module, kind):
                setattr(module, name, change(getattr(module, name)))
    assert error(fast(*inputs), plain(*inputs)) < 1e-5


NUMBER = torch.zeros(1)


@pytest.mark.parametrize(
    ("name", "operands"),  # of sizes that pass all addresses; nothing is read
    [
        ("group_norm", (*[NUMBER] * 4, 2**40, 1, 2**10, 1, 0.0, 0)),
        ("product", (NUMBER, NUMBER, None, None, NUMBER, 2**50, 1, 1, 0)),
        ("convolve", (NUMBER, NUMBER, None, None, NUMBER, 2**40, 32, 32, 1, 1, 1, 0, 0)),
        ("attention_float32", (*[NUMBER] * 4, 1, 1, 1, 1, 2**44, *[0] * 6, 1.0)),
    ],
)
def test_memory_that_runs_out_is_an_error(name: str, operands: tuple[Any, ...]) -> None:
    with pytest.raises(ReverieError, match="memory ran out"):
        extension.call(name, *operands)


def test_memory_that_runs_out_is_an_error_in_plans_too() -> None:
    repeat = PlannedCall(lambda: 1, [], []).over(torch.empty(0, dtype=torch.uint8))
    with pytest.raises(ReverieError, match="memory ran out"):
        repeat([])
