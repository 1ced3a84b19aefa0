"""Does Winograd's way convolve as the direct way does, at every size, and only where it is the quicker?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.fast import pack, unpack, winograd
from reverie.models.unet import UNet

from .test_exact import UNET, error, given, numbers


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (1, 3), (33, 18)])
@pytest.mark.parametrize("tiles", [1, 3, 256])
def test_it_convolves(size: tuple[int, int], tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "TILES", tiles)
    x, weight, bias = numbers(2, 5, *size), numbers(7, 5, 3, 3), numbers(7)
    kernel, wanted = winograd.transformed(weight), F.conv2d(x, weight, padding=1)
    assert error(winograd.conv2d(x, kernel, None), wanted) < 1e-5
    for add in (numbers(2, 7, *size), numbers(2, 7, 1, 1)):
        assert error(winograd.conv2d(x, kernel, bias, add), wanted + bias[:, None, None] + add) < 1e-5


def test_it_wins_at_large_images_with_kernels_of_bounded_memory() -> None:
    assert winograd.wins(320, 320, 64, 64)
    assert winograd.wins(1280, 640, 32, 32)
    assert not winograd.wins(320, 320, 16, 16)
    assert not winograd.wins(2560, 1280, 64, 64)


@torch.no_grad()
def test_a_layer_goes_over_to_it_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST", 4)
    conv = pack(nn.Sequential(nn.Conv2d(24, 40, 3, padding=1)))[0]
    weight, large, small = conv.weight.clone(), numbers(1, 24, 8, 8), numbers(1, 24, 4, 4)
    for x in (large, small, large):
        assert error(conv(x), F.conv2d(x, weight, conv.bias, padding=1)) < 1e-5
        assert (conv.tiled is not None) == (x is large)
    conv.weight.mul_(2)
    assert error(conv(large), F.conv2d(large, 2 * weight, conv.bias, padding=1)) < 1e-5
    conv.weight = nn.Parameter(weight)
    assert error(conv(large), F.conv2d(large, weight, conv.bias, padding=1)) < 1e-5
    assert torch.equal(conv.weight, weight)
    for other in (nn.Conv2d(24, 40, 3, padding=1, stride=2), nn.Conv2d(24, 40, 3, padding=2, dilation=2)):
        direct = pack(nn.Sequential(other))[0]
        direct(large)
        assert direct.tiled is None


@torch.no_grad()
def test_a_whole_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST", 1)
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    exact, state = network(x, t, context), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert error(pack(network)(x, t, context), exact) < 1e-5
    assert any(getattr(part, "tiled", None) for part in network.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in unpack(network).state_dict().items())
    assert not any("tiled" in vars(part) for part in network.modules())
