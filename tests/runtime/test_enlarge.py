"""Is the doubled image the same when its pixels are never repeated?"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.models.layers import Upsample
from reverie.runtime import blocks, extension, pack, winograd
from reverie.runtime.blocks import CORNERS, FastUpsample, corner_kernel

from .test_exact import error


@pytest.fixture
def upsample(monkeypatch: pytest.MonkeyPatch) -> FastUpsample:
    """Return one that doubles by its corners' kernels at every size."""
    monkeypatch.setattr(blocks, "SMALL", 0)
    monkeypatch.setattr(winograd, "wins", lambda *shape: False)
    torch.manual_seed(0)
    return pack(nn.Sequential(Upsample(24)))[0]


def plainly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Repeat pixels, pad by zeros and convolve, in double precision."""
    doubled = x.double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.conv2d(doubled, weight.double(), None if bias is None else bias.double(), padding=1).float()


def test_corners_see_sums_of_a_kernel() -> None:
    weight = torch.tensor([[[[1.0, 2, 4], [8, 16, 32], [64, 128, 256]]]])
    assert corner_kernel(weight, 0, 0).tolist() == [[[[1, 6], [72, 432]]]]
    assert corner_kernel(weight, 1, 1).tolist() == [[[[27, 36], [192, 256]]]]
    assert all(corner_kernel(weight, *corner).sum() == weight.sum() for corner in CORNERS)


@torch.no_grad()
@pytest.mark.parametrize("side", [(4, 6), (1, 1), (3, 1), (7, 5)])
def test_it_is_the_doubled_image_convolved(upsample: FastUpsample, side: tuple[int, int]) -> None:
    weight, bias = upsample.conv.weight.clone(), upsample.conv.bias
    x = torch.randn(2, 24, *side)
    y = upsample(x)
    assert upsample.corners is not None
    assert error(y, plainly(x, weight, bias)) < 1e-6
    assert torch.equal(upsample.conv.weight, weight)
    other = torch.randn(2, 24, side[0], 2 * side[1])
    assert torch.equal(upsample(other, (2 * side[0], 4 * side[1])), upsample(other))


@torch.no_grad()
@pytest.mark.skipif(extension.library() is None, reason="no extension was compiled")
def test_it_doubles_by_winograd_with_the_plain_weight(upsample: FastUpsample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "wins", lambda *shape: shape == (24, 24, 6, 10, torch.float32))
    x, weight = torch.randn(2, 24, 3, 5), upsample.conv.weight
    assert error(upsample(x), plainly(x, weight, upsample.conv.bias)) < 1e-5
    assert upsample.conv.weight is weight
    assert upsample.corners is None


@torch.no_grad()
def test_sizes_that_are_not_the_double_are_taken_plainly(upsample: FastUpsample) -> None:
    x = torch.randn(2, 24, 4, 5)
    y = upsample(x, (7, 9))
    wanted = F.conv2d(F.interpolate(x, (7, 9)), upsample.conv.weight, upsample.conv.bias, padding=1)
    assert error(y, wanted) < 1e-6


@torch.no_grad()
def test_small_images_are_taken_plainly_and_large_ones_let_go_of_memory(
    upsample: FastUpsample, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(blocks, "trim", lambda: calls.append(None))
    monkeypatch.setattr(blocks, "LARGE", 1)
    x, weight, bias = torch.randn(2, 24, 4, 4), upsample.conv.weight.clone(), upsample.conv.bias
    assert error(upsample(x), plainly(x, weight, bias)) < 1e-6
    assert len(calls) == 1
    monkeypatch.setattr(blocks, "SMALL", 33)
    upsample.corners = None
    assert error(upsample(x), plainly(x, weight, bias)) < 1e-6
    assert upsample.corners is None


@torch.no_grad()
def test_another_weight_is_taken_up(upsample: FastUpsample) -> None:
    x, bias = torch.randn(1, 24, 3, 4), upsample.conv.bias
    upsample(x)
    upsample.conv.weight.mul_(2)
    assert error(upsample(x), plainly(x, upsample.conv.weight, bias)) < 1e-6
    upsample.conv.weight = nn.Parameter(torch.randn(24, 24, 3, 3))
    assert error(upsample(x), plainly(x, upsample.conv.weight, bias)) < 1e-6
    assert torch.equal(copy.deepcopy(upsample)(x), upsample(x))
