"""Every two ways of computing a network: both take effect, one gives way, or both are refused, as the table says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from itertools import combinations

import pytest
import torch
from torch import Tensor, fx

import reverie
from reverie.errors import ReverieError
from reverie.models.unet import UNet
from reverie.runtime import pack, quantize
from reverie.runtime.changes import RULES, WAYS, check_combination, merging, reusing, seamless
from reverie.runtime.compiled import compile_network
from reverie.runtime.int8 import available
from reverie.runtime.offload import OFFLOADS, Offloader

from .test_exact import UNET, error, given

LOADED, DRAWN = WAYS[:4], WAYS[4:]
PAIRS = list(combinations(WAYS, 2))
REFUSED = [pair for pair in PAIRS if pair in RULES and RULES[pair].wins is None]
CHANGES: dict[str, Callable[[UNet], AbstractContextManager[None]]] = {
    "cache_steps": partial(reusing, every=2),
    "merge_tokens": partial(merging, ratio=0.5),
    "tile": lambda unet: seamless([unet], "xy"),
}


class Calls:
    """Run what torch traced, and count."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: fx.GraphModule, example: object) -> Callable[..., object]:
        def run(*inputs: object) -> object:
            self.count += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture(scope="module", autouse=True)
def traceable() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNET).eval()


@cache
def computing(unet: UNet, way: str) -> tuple[UNet, Calls]:
    """Copy a U-Net and let the copy, one for all tests, compute in a way; count what compiled code is called."""
    ours, calls = copy.deepcopy(unet), Calls()
    if way == "offload":
        Offloader(torch.device("cpu"), OFFLOADS["blocks"]).take(ours)
    elif way == "compile":
        compile_network(ours, calls)
    else:
        {"fast": pack, "int8": quantize}[way](ours)
    return ours, calls


@torch.no_grad()
def two_steps(unet: UNet, *changes: str) -> Tensor:
    """Predict at two timesteps of one drawing under changes, the second of which DeepCache computes in part."""
    x, t, context = given(side=(8, 8))
    contexts = [CHANGES[change](unet) for change in changes]
    for entered in contexts:
        entered.__enter__()
    try:
        return torch.cat([unet(x, t, context), unet(x, t - 50, context)])
    finally:
        for entered in reversed(contexts):
            entered.__exit__(None, None, None)


def test_rules_name_ways_in_their_order() -> None:
    assert set(RULES) <= set(PAIRS)
    assert all(rule.wins in (*pair, None) for pair, rule in RULES.items())


@pytest.mark.parametrize("pair", REFUSED, ids="-".join)
def test_what_excludes_each_other_is_refused_as_a_model_is_loaded(pair: tuple[str, str]) -> None:
    values = {"fast": True, "int8": True, "offload": "blocks", "compile": True}
    options = {"fast": False} | {way: values[way] for way in pair}
    with pytest.raises(ReverieError, match=f"^{pair[0]} and {pair[1]} exclude each other: .*; leave out one of them$"):
        reverie.load(device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", LOADED)
@pytest.mark.parametrize("change", DRAWN)
def test_each_change_of_a_drawing_takes_effect_however_the_network_computes(unet: UNet, way: str, change: str) -> None:
    if way == "int8" and not available():
        pytest.skip("this processor multiplies no 8-bit numbers")
    ours, calls = computing(unet, way)
    rounding = {"fast": 1e-4, "int8": 0.2, "offload": 0.0, "compile": 1e-5}[way]
    plain, changed = two_steps(unet), two_steps(unet, change)
    assert error(two_steps(ours), plain) <= rounding
    before = calls.count
    assert error(two_steps(ours, change), changed) <= rounding
    assert (calls.count == before) == (way != "compile" or RULES[way, change].wins == change)
    assert error(plain, changed) > 1e-3  # far from rounding: the change is seen
    assert error(two_steps(ours), plain) <= rounding


@pytest.mark.parametrize("pair", list(combinations(DRAWN, 2)), ids="-".join)
def test_changes_of_a_drawing_add_up(unet: UNet, pair: tuple[str, str]) -> None:
    together = two_steps(unet, *pair)
    assert torch.equal(together, two_steps(unet, *reversed(pair)))
    assert all(error(together, two_steps(unet, one)) > 1e-3 for one in pair)


def test_ways_that_go_together_are_not_refused() -> None:
    for pair in set(PAIRS) - set(REFUSED):
        check_combination(pair)
