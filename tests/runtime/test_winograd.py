"""Does Winograd's way convolve as the direct way does, at every size, in C and by torch's products?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.models.unet import UNet
from reverie.runtime import extension, pack, unpack, winograd

from .test_exact import UNET, error, given, numbers

COMPILED = pytest.param(True, marks=pytest.mark.skipif(extension.library() is None, reason="no extension was compiled"))


@pytest.fixture(params=[COMPILED, False], ids=["in C", "by products"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Go either way."""
    if not request.param:
        monkeypatch.setattr(extension, "library", lambda: None)
    return bool(request.param)


def directly(x: Tensor, weight: Tensor, padding: tuple[int, int] = (1, 1), doubled: bool = False) -> Tensor:
    """Convolve in double precision."""
    seen = F.interpolate(x.double(), scale_factor=2) if doubled else x.double()
    return F.conv2d(seen, weight.double(), padding=padding)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (1, 3), (33, 18)])
@pytest.mark.parametrize(("channels", "made"), [(5, 7), (16, 32), (70, 33)])
@pytest.mark.parametrize("doubled", [False, True])
def test_it_convolves(compiled: bool, size: tuple[int, int], channels: int, made: int, doubled: bool) -> None:
    x, weight, bias = last(numbers(3, channels, *size)), numbers(made, channels, 3, 3), numbers(made)
    wanted = directly(x, weight, doubled=doubled)
    assert error(winograd.conv2d(x, weight, None, doubled=doubled), wanted) < 1e-5
    wanted += bias.double()[:, None, None]
    for add in (numbers(*wanted.shape, seed=2), last(numbers(*wanted.shape, seed=2)), numbers(3, made, 1, 1)):
        y = winograd.conv2d(x, weight, bias, add=add, doubled=doubled)
        assert error(y, wanted + add) < 1e-5
        relu = winograd.conv2d(x, weight, bias, add=add, relu=True, doubled=doubled)
        assert torch.equal(relu, y.relu())


@pytest.mark.skipif(not hasattr(extension.library(), "winograd_bfloat16"), reason="not compiled for bfloat16")
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (33, 18)])
@pytest.mark.parametrize(("channels", "made"), [(5, 7), (16, 32), (70, 33)])
@pytest.mark.parametrize("doubled", [False, True])
def test_bfloat16_is_rounded_once(size: tuple[int, int], channels: int, made: int, doubled: bool) -> None:
    """Its sums are float's: almost all results are the exact ones, rounded."""
    x, weight = last(numbers(3, channels, *size)).bfloat16(), numbers(made, channels, 3, 3).bfloat16()
    bias, exactly = numbers(made).bfloat16(), directly(x, weight, doubled=doubled)
    for add in (last(numbers(*exactly.shape, seed=2)).bfloat16(), numbers(3, made, 1, 1).bfloat16()):
        wanted = exactly + bias.double()[:, None, None] + add
        y = winograd.conv2d(x, weight, bias, add=add, doubled=doubled)
        assert y.dtype == torch.bfloat16
        assert error(y.double(), wanted) < 1.01 * error(wanted.bfloat16().double(), wanted)
        assert torch.equal(winograd.conv2d(x, weight, bias, add=add, relu=True, doubled=doubled), y.relu())
    x[0] = torch.nan
    assert winograd.conv2d(x, weight, None, relu=True, doubled=doubled)[0].isnan().all()


@pytest.mark.parametrize("padding", [(0, 0), (0, 1), (1, 0)])
def test_it_pads_or_does_not(compiled: bool, padding: tuple[int, int]) -> None:
    x, weight = last(numbers(2, 20, 9, 6)), numbers(18, 20, 3, 3)
    assert error(winograd.conv2d(x, weight, None, padding), directly(x, weight, padding)) < 1e-5


def test_what_is_no_number_stays_none_and_no_image_gives_none(compiled: bool) -> None:
    x, weight = last(numbers(2, 32, 8, 8)), numbers(32, 32, 3, 3)
    x[0, 0, 3, 3] = torch.nan
    y = winograd.conv2d(x, weight, None, relu=True)
    assert y[0, :, 2:5, 2:5].isnan().all()
    assert not y[1].isnan().any()
    assert winograd.conv2d(x[:0], weight, None).shape == (0, 32, 8, 8)


@pytest.mark.parametrize(("tiles", "part"), [(1, 1), (3, 2**9)])
def test_products_are_cut_anywhere(tiles: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "library", lambda: None)
    monkeypatch.setattr(winograd, "TILES", tiles)
    monkeypatch.setattr(winograd, "PART", part)
    x, weight = last(numbers(3, 5, 33, 18)), numbers(7, 5, 3, 3)
    assert error(winograd.conv2d(x, weight, None), directly(x, weight)) < 1e-5


def test_transforms_are_those_of_the_paper() -> None:
    """Each convolves a tile exactly, but for the rounding of twenty-fourths."""
    tile, kernel = numbers(winograd.SEEN, winograd.SEEN).double(), numbers(3, 3).double()
    seen, multiplied = winograd.INPUT.double() @ tile.flatten(), winograd.KERNEL.double() @ kernel.flatten()
    made = (winograd.OUTPUT.double() @ (seen * multiplied)).view(winograd.MADE, winograd.MADE)
    assert error(made, F.conv2d(tile[None, None], kernel[None, None])[0, 0]) < 1e-6


@pytest.mark.skipif(extension.library() is None, reason="no extension was compiled")
@pytest.mark.parametrize("shape", [(1, 16, 130, 130), (2, 320, 16, 16), (5, 64, 4, 6)])
def test_threads_and_the_rest_of_a_batch_change_nothing(shape: tuple[int, ...]) -> None:
    """An image of many blocks of tiles, which threads share, and one of few, whose channels they do."""
    x, weight = last(numbers(*shape)), numbers(96, shape[1], 3, 3)
    before, given = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            given[threads] = winograd.conv2d(x, weight, None)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(given[1], given[2])
    assert torch.equal(given[1], given[3])
    assert torch.equal(given[1][:1], winograd.conv2d(x[:1], weight, None))


def test_it_takes_what_it_is_the_quicker_for(monkeypatch: pytest.MonkeyPatch) -> None:
    if extension.library() is not None:
        assert winograd.wins(1280, 1280, 4, 4)
        assert winograd.wins(64, 64, 512, 512)
        assert not winograd.wins(320, 16, 64, 64)
        assert not winograd.wins(640, 640, 2, 2)
        assert not winograd.wins(640, 640, 8, 8, torch.bfloat16)
    monkeypatch.setattr(extension, "library", lambda: None)
    assert winograd.wins(1280, 640, 32, 32)
    assert not winograd.wins(1280, 1280, 16, 16)
    assert not winograd.wins(2560, 2560, 64, 64)
    assert not winograd.wins(64, 64, 512, 512)
    assert not winograd.wins(1280, 640, 32, 32, torch.bfloat16)


@torch.no_grad()
def test_a_layer_goes_over_to_it_and_back(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FEW": 64, "NARROW": 24, "MANY": 4, "WIDE": 24}.items():
        monkeypatch.setattr(winograd, name, value)
    conv = pack(nn.Sequential(nn.Conv2d(24, 40, 3, padding=1)))[0]
    weight, large, small = conv.weight.clone(), numbers(1, 24, 8, 8), numbers(1, 24, 4, 4)
    largest = numbers(1, 24, 16, 16)
    for x in (large, small, largest, large):
        assert error(conv(x), F.conv2d(x, weight, conv.bias, padding=1)) < 1e-5
        assert (conv._parameters["weight"] is None) == (x is small), "packed for the direct way alone"
    conv.weight.mul_(2)
    assert error(conv(large), F.conv2d(large, 2 * weight, conv.bias, padding=1)) < 1e-5
    conv.weight = nn.Parameter(last(weight))
    assert error(conv(large), F.conv2d(large, weight, conv.bias, padding=1)) < 1e-5
    assert torch.equal(conv.weight, weight)
    for other in (nn.Conv2d(24, 40, 3, padding=1, stride=2), nn.Conv2d(24, 40, 3, padding=2, dilation=2)):
        direct = pack(nn.Sequential(other))[0]
        assert direct.winograd_padding(large) is None
        assert error(direct(large), nn.Conv2d.forward(direct, large)) < 1e-5


@torch.no_grad()
def test_a_whole_network_computes_the_same(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NARROW", "FEW", "WIDE", "MANY"):
        monkeypatch.setattr(winograd, name, 1)
    calls: list[Tensor] = []
    convolve = winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda *given, **more: calls.append(given[0]) or convolve(*given, **more))
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    exact, state = network(x, t, context), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert error(pack(network)(x, t, context), exact) < 1e-5
    assert calls
    assert all(torch.equal(tensor, state[name]) for name, tensor in unpack(network).state_dict().items())
