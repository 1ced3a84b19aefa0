"""Do fast networks compute what plain ones do, whatever is done to them and around them between two calls?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from torch.utils.hooks import RemovableHandle

from reverie.models.unet import UNet
from reverie.runtime import extension, layers, pack, transform

from .test_exact import UNET, error, given

Pair = tuple[UNet, UNet]
TRANSFORMER = "down_blocks.0.attentions.0.transformer_blocks.0."


@pytest.fixture(params=["packed", "narrow"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Return a U-Net, fast and plain: with packed weights, or narrow, with a plan of its calls where kernels are."""
    if request.param == "narrow":
        monkeypatch.setattr(transform, "WIDE", 256)
        monkeypatch.setattr(layers, "SMALL", extension.SMALL)
    torch.manual_seed(0)
    plain = UNet(replace(UNET, block_out_channels=(32, 48))).eval()
    fast = pack(copy.deepcopy(plain))
    for _ in range(4):
        call(fast)
    return fast, plain


def call(unet: UNet) -> Tensor:
    with torch.no_grad():
        return unet(*given())


def same(pair: Pair, times: int = 1) -> bool:
    fast, plain = pair
    return all(error(call(fast), call(plain)) < 1e-5 for _ in range(times))


def halved(made: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [halved(one) for one in made] if isinstance(made, list) else made * 0.5


def watch(module: nn.Module, before: bool, seen: list[Tensor]) -> RemovableHandle:
    """Let a hook note what a module is given, and halve it, or what the module makes."""

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0])
        return halved(inputs[0]), *inputs[1:]

    def leave(_: nn.Module, inputs: tuple[Tensor, ...], made: Tensor) -> Tensor | list[Tensor]:
        seen.append(inputs[0])
        return halved(made)

    return module.register_forward_pre_hook(enter) if before else module.register_forward_hook(leave)


@pytest.mark.parametrize("before", [False, True])
def test_a_hook_sees_and_changes_what_it_would_in_the_plain_network(pair: Pair, before: bool) -> None:
    for name, module in pair[1].named_modules():
        if isinstance(module, nn.ModuleList) or not name.startswith(("down_blocks.0.", "up_blocks.0.up")):
            continue
        seen: tuple[list[Tensor], list[Tensor]] = [], []
        handles = [watch(unet.get_submodule(name), before, to) for unet, to in zip(pair, seen, strict=True)]
        assert same(pair), name
        assert all(error(one, other) < 1e-5 for one, other in zip(*seen, strict=True)), name
        for handle in handles:
            handle.remove()
    assert same(pair)


def test_a_layer_that_was_given_another_forward_computes_by_it(pair: Pair) -> None:
    names = [name for name, part in pair[1].named_modules() if isinstance(part, nn.Linear | nn.Conv2d) and "." in name]
    for name in names:
        for unet in pair:
            layer = unet.get_submodule(name)
            layer.forward = lambda x, forward=type(layer).forward, layer=layer: 0.5 * forward(layer, x)
        assert same(pair), name
        for unet in pair:
            del unet.get_submodule(name).forward


def test_convolutions_that_are_let_wrap_do(pair: Pair) -> None:
    for unet in pair:
        for part in unet.modules():
            if isinstance(part, nn.Conv2d):
                part.padding_mode = "circular"
    assert same(pair, times=3)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_weights_may_be_parametrised(pair: Pair) -> None:
    for name in (f"{TRANSFORMER}attn1.to_q", f"{TRANSFORMER}ff.net.0.proj", "mid_block.resnets.0.conv1"):
        for unet in pair:
            register_parametrization(unet.get_submodule(name), "weight", Doubled())
        assert same(pair, times=3), name
        for unet in pair:
            remove_parametrizations(unet.get_submodule(name), "weight")
        assert same(pair, times=3), name


def test_weights_may_be_pruned(pair: Pair) -> None:
    for name in (f"{TRANSFORMER}attn1.to_q", f"{TRANSFORMER}ff.net.0.proj", "mid_block.resnets.0.conv1"):
        layers = [unet.get_submodule(name) for unet in pair]
        for layer in layers:
            prune.l1_unstructured(layer, "weight", 0.5)
        assert same(pair, times=3), name
        for layer in layers:
            prune.remove(layer, "weight")
        assert same(pair, times=3), name
        assert all(int((layer.weight == 0).sum()) == layer.weight.numel() // 2 for layer in layers), name


@pytest.mark.parametrize("change", [{"padding": (2, 2), "dilation": (2, 2)}, {"padding": (3, 3), "dilation": (3, 3)}])
def test_convolutions_may_be_dilated(pair: Pair, change: dict[str, tuple[int, int]]) -> None:
    """As ScaleCrafter and HiDiffusion do."""
    for unet in pair:
        for name, value in change.items():
            setattr(unet.mid_block.resnets[0].conv1, name, value)
    assert same(pair, times=3)


def test_layers_without_bias_and_norms_without_weight(pair: Pair) -> None:
    for unet in pair:
        block = unet.down_blocks[0].resnets[0]
        block.conv1.bias = block.norm1.bias = block.norm2.weight = None
        block.norm1.eps = 0  # type: ignore[assignment]
    assert same(pair, times=3)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("around", [default_dtype, lambda: torch.device("meta")], ids=["dtype", "device"])
def test_torchs_defaults_are_for_others(pair: Pair, around: Callable[[], AbstractContextManager[object]]) -> None:
    fast, plain = pair
    inputs, fresh = given(), pack(copy.deepcopy(plain))
    with torch.no_grad():
        wanted = plain(*inputs)
        with around():
            for unet in (fast, fresh, fresh, fresh):
                made = unet(*inputs)
                assert made.device.type == "cpu"
                assert error(made, wanted) < 1e-5


def test_autocast_is_followed(pair: Pair) -> None:
    exact = call(pair[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast, plain = (error(call(unet), exact) for unet in pair)
    assert 1e-3 < fast < 1.5 * plain  # both in bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_network_is_all_there(pair: Pair) -> None:
    fast, plain = (unet.requires_grad_(False) for unet in pair)
    x, t, context = given()
    traced = torch.jit.trace(fast, (x, t, context), check_trace=False)
    assert error(traced(x + 1, t, context), plain(x + 1, t, context)) < 1e-5


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad])
def test_modes_may_change(pair: Pair, first: Callable[[], AbstractContextManager[object]]) -> None:
    fresh = pack(copy.deepcopy(pair[1]))
    for mode in (first, torch.no_grad, torch.inference_mode, torch.no_grad, torch.enable_grad):
        for _ in range(3):
            with mode():
                assert error(fresh(*given()).detach(), call(pair[1])) < 1e-5


def test_a_fused_optimiser_is_noticed(pair: Pair) -> None:
    """Its writes are not counted by torch."""
    for unet in pair:
        weights = [layer.weight for layer in unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        torch.optim.SGD(weights, lr=0.1, fused=True).step()
    assert same(pair, times=3)


def test_layouts_of_what_is_given_make_no_difference(pair: Pair) -> None:
    plain = pair[1]
    x, t, context = given()
    with torch.no_grad():
        inputs = plain.conv_in(x), plain._embed(t, None, None), context
        fresh = pack(copy.deepcopy(plain))
        made = [fresh.levels(*inputs, None) for _ in range(4)]
    assert all(torch.equal(made[0], other) for other in made)
