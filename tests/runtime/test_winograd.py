"""Does Winograd's way convolve as the direct way does, at every size, and only where it is the quicker?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.models.unet import UNet
from reverie.runtime import pack, unpack, winograd

from .test_exact import UNET, error, given, numbers


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (1, 3), (33, 18)])
@pytest.mark.parametrize("tiles", [1, 3, 256])
@pytest.mark.parametrize("wide", [1, 256])
@pytest.mark.parametrize("part", [1, 2**9, 2**22])
@pytest.mark.parametrize("tiling", [winograd.FOUR, winograd.TWO], ids=["four", "two"])
def test_it_convolves(
    size: tuple[int, int],
    tiles: int,
    wide: int,
    part: int,
    tiling: winograd.Tiling,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(winograd, "TILES", tiles)
    monkeypatch.setattr(winograd, "WIDE", wide)
    monkeypatch.setattr(winograd, "PART", part)
    x, weight, bias = numbers(3, 5, *size), numbers(7, 5, 3, 3), numbers(7)
    kernel, wanted = winograd.transform_kernel(weight, tiling), F.conv2d(x, weight, padding=1)
    assert error(winograd.conv2d(x, kernel, None), wanted) < 1e-5
    kernel = winograd.pack_kernel(kernel)
    for add in (numbers(3, 7, *size), numbers(3, 7, 1, 1)):
        assert error(winograd.conv2d(x, kernel, bias, add), wanted + bias[:, None, None] + add) < 1e-5


def test_transforms_are_those_of_the_paper() -> None:
    """Each convolves a tile exactly, but for the rounding of twenty-fourths."""
    for tiling in (winograd.FOUR, winograd.TWO):
        tile, kernel = numbers(tiling.seen, tiling.seen).double(), numbers(3, 3).double()
        seen, multiplied = (tiling.input.double() @ tile.flatten()), (tiling.kernel.double() @ kernel.flatten())
        made = (tiling.output.double() @ (seen * multiplied)).view(tiling.made, tiling.made)
        assert error(made, F.conv2d(tile[None, None], kernel[None, None])[0, 0]) < 1e-6


def test_it_suits_large_images_and_kernels_of_bounded_memory() -> None:
    assert winograd.choose_tiling(320, 320, 64, 64) is winograd.FOUR
    assert winograd.choose_tiling(1280, 640, 32, 32) is winograd.FOUR
    assert winograd.choose_tiling(1920, 640, 32, 32) is winograd.TWO
    assert winograd.choose_tiling(1280, 1280, 16, 16) is winograd.TWO
    assert winograd.choose_tiling(640, 640, 8, 8) is None
    assert winograd.choose_tiling(2560, 2560, 64, 64) is None


@torch.no_grad()
def test_a_layer_goes_over_to_it_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST", 16)
    monkeypatch.setattr(winograd, "NARROW", 24)
    conv = pack(nn.Sequential(nn.Conv2d(24, 40, 3, padding=1)))[0]
    weight, large, small = conv.weight.clone(), numbers(1, 24, 8, 8), numbers(1, 24, 4, 4)
    largest = numbers(1, 24, 16, 16)
    for x in (large, small, largest, large):
        assert error(conv(x), F.conv2d(x, weight, conv.bias, padding=1)) < 1e-5
        assert (conv.tiled is not None) == (x is large), "the kernel of small tiles alone is kept"
    conv.weight.mul_(2)
    assert error(conv(large), F.conv2d(large, 2 * weight, conv.bias, padding=1)) < 1e-5
    conv.weight = nn.Parameter(weight)
    assert error(conv(large), F.conv2d(large, weight, conv.bias, padding=1)) < 1e-5
    assert torch.equal(conv.weight, weight)
    for other in (nn.Conv2d(24, 40, 3, padding=1, stride=2), nn.Conv2d(24, 40, 3, padding=2, dilation=2)):
        direct = pack(nn.Sequential(other))[0]
        direct(large)
        assert direct.tiled is None


def test_narrow_convolutions_go_the_direct_way() -> None:
    assert winograd.choose_tiling(winograd.NARROW, winograd.NARROW, 128, 128) is winograd.FOUR
    assert winograd.choose_tiling(winograd.NARROW // 2, winograd.NARROW, 128, 128) is None
    assert winograd.choose_tiling(winograd.NARROW, winograd.NARROW // 2, 128, 128) is None


@torch.no_grad()
def test_a_whole_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST", 1)
    monkeypatch.setattr(winograd, "NARROW", 1)
    kernels: list[winograd.Tiling] = []
    transformed = winograd.transform_kernel
    monkeypatch.setattr(
        winograd, "transform_kernel", lambda weight, tiling: kernels.append(tiling) or transformed(weight, tiling)
    )
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    exact, state = network(x, t, context), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert error(pack(network)(x, t, context), exact) < 1e-5
    assert kernels
    assert all(torch.equal(tensor, state[name]) for name, tensor in unpack(network).state_dict().items())
    assert not any("tiled" in vars(part) for part in network.modules())
