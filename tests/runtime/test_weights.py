"""Is a weight that stays in its file what it would be if it were read?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reverie.models.unet import UNet
from reverie.runtime import cast_to, is_packed, pack, pack_after, quantize, unpack
from reverie.runtime.int8 import available
from reverie.runtime.weights import FileStore, HeldEmbedding, HeldLayer, as_held

from .test_exact import UNET, error, given


@pytest.fixture
def half() -> nn.Sequential:
    """Return layers of each kind in half precision, as a file has them."""
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Conv2d(24, 40, 3, padding=1), nn.Conv2d(40, 24, 1), nn.Conv2d(24, 3, 3), nn.BatchNorm2d(3))
        .half()
        .eval()
    )


def stays(layer: nn.Module) -> bool:
    return isinstance(layer, HeldLayer) and isinstance(layer.store, FileStore) and layer._parameters["weight"] is None


@torch.no_grad()
def test_layers_compute_as_if_they_had_been_read(half: nn.Sequential) -> None:
    x, read, held = torch.randn(2, 24, 5, 6), copy.deepcopy(half).float(), copy.deepcopy(half)
    before = list(held.parameters())
    cast_to(held, torch.float32)
    assert [stays(layer) for layer in held] == [True, True, True, False]
    assert all(as_held(layer) is weight for layer, weight in zip(held[:3], before[::2], strict=False))
    assert torch.equal(held(x), read(x))
    assert all(stays(layer) for layer in held[:3])
    assert all(buffer.dtype == torch.float32 for buffer in held.buffers() if buffer.is_floating_point())
    assert torch.equal(pack(held)(x), pack(copy.deepcopy(read))(x))


@torch.no_grad()
def test_who_asks_for_a_weight_gets_the_plain_one(half: nn.Sequential) -> None:
    read = copy.deepcopy(half).float()
    for ask in (
        lambda network: network[0].weight,
        lambda network: network.state_dict()["0.weight"],
        lambda network: copy.deepcopy(network)[0].weight,
        lambda network: unpack(network)[0].weight,
        lambda network: network.double().float()[0].weight,
    ):
        held = copy.deepcopy(half)
        cast_to(held, torch.float32)
        weight = ask(held)
        assert weight.dtype == torch.float32
        assert torch.equal(weight, read[0].weight)
    cast_to(held := copy.deepcopy(half), torch.float32)
    held[0].weight.mul_(2)
    read[0].weight.mul_(2)
    x = torch.randn(1, 24, 5, 6)
    assert torch.equal(held(x), read(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "way", [pack, pytest.param(quantize, marks=pytest.mark.skipif(not available(), reason="no VNNI"))]
)
def test_a_network_computes_as_if_it_had_been_read(way: object) -> None:
    torch.manual_seed(0)
    network = UNet(UNET).eval().half()
    read, held = way(copy.deepcopy(network).float()), copy.deepcopy(network)
    cast_to(held, torch.float32)
    held = way(held)
    for _ in range(3):  # a plan may be written
        assert torch.equal(held(*given()), read(*given()))
    theirs = read.state_dict()
    assert all(torch.equal(values, theirs[name]) for name, values in held.state_dict().items())


@torch.no_grad()
def test_a_network_that_is_packed_late_stays_in_its_file_until_then() -> None:
    network = nn.Sequential(nn.Embedding(7, 32), nn.Linear(32, 48)).half()
    ids, read = torch.arange(5), copy.deepcopy(network).float()
    cast_to(network, torch.float32)
    pack_after(2, network)
    for packed in (False, True, True):
        assert error(network(ids), read(ids)) < 1e-6
        assert is_packed(network) is packed
    assert type(network[0]) is HeldEmbedding
    assert stays(network[0])
