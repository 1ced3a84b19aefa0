"""Do rounded layers compute what their rounded numbers say? Against floating point, layer by layer and as a whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.unet import UNet
from reverie.runtime import int8, quantize
from reverie.runtime.int8 import Int8Conv2d, Int8Linear, Int8Pointwise, Rounded, round_input, round_weight

from .test_exact import UNET, error, given, numbers

pytestmark = pytest.mark.skipif(not int8.available(), reason="this processor multiplies no 8-bit numbers")

LAYERS = {
    Int8Linear: lambda: nn.Linear(24, 40),
    Int8Conv2d: lambda: nn.Conv2d(24, 40, 3, padding=1, stride=2),
    Int8Pointwise: lambda: nn.Conv2d(24, 40, 1, bias=False),
}


def seen(x: Tensor) -> Tensor:
    """Return an input as it was rounded."""
    q, scale, zero = round_input(x)
    return scale * (q.float() - zero)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_inputs_are_rounded_to_the_nearest_and_zero_stays_zero(scale: float) -> None:
    for seed in range(50):
        x = scale * (numbers(3, 7, seed=seed) + seed % 3 - 1)
        x[0, 0] = 0
        step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 255
        assert ((seen(x) - x).abs() <= 1.01 * step).all()
        assert seen(x)[0, 0] == 0
    for constant in (0.0, 5.0, -5.0):
        assert torch.allclose(seen(torch.full((2, 3), constant)), torch.tensor(constant), rtol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_its_rounded_numbers_say(kind: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().to(dtype)
    exact = layer.weight.float().clone()
    quantize(nn.Sequential(layer))
    assert type(layer) is kind
    x = numbers(2, 5, 24).to(dtype) if kind is Int8Linear else numbers(2, 24, 6, 7).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert layer.store is not None
    (part,) = layer.store.parts
    assert isinstance(part, Rounded)
    assert part.packed.dtype == torch.int8
    weight = layer.weight.float()
    assert ((weight - exact).abs() <= exact.flatten(1).abs().amax(1).view(-1, *[1] * (exact.ndim - 1)) / 100).all()
    bias = None if layer.bias is None else layer.bias.float()
    if kind is Int8Linear:
        wanted = F.linear(seen(x), weight, bias)
    else:
        wanted = F.conv2d(seen(x), weight, bias, stride=layer.stride, padding=layer.padding)
    assert error(y.float(), wanted) < (1e-2 if dtype == torch.bfloat16 else 1e-5)
    assert error(layer(x).float(), y.float()) < (1e-2 if dtype == torch.bfloat16 else 1e-6)  # rounded a second time
    layer.weight = nn.Parameter(2 * layer.weight)
    assert error(layer(x).float(), 2 * wanted - (0 if bias is None else _like(bias, wanted))) < 1e-2


def _like(bias: Tensor, y: Tensor) -> Tensor:
    return bias if y.ndim == 3 else bias[:, None, None]


def test_each_channel_has_a_scale_of_its_own() -> None:
    weight = torch.tensor([[1.0, -2.0], [1000.0, 1.0], [0.0, 0.0]])
    rows, scales = round_weight(weight)
    assert rows.tolist() == [[64, -127], [127, 0], [0, 0]]
    torch.testing.assert_close(scales[:2], torch.tensor([2 / 127, 1000 / 127]))


def test_a_network_comes_near_and_gradients_still_flow() -> None:
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    with torch.no_grad():
        exact = network(x, t, context)
        quantize(network)
        assert 1e-5 < error(network(x, t, context), exact) < 0.1
    network(x, t, context).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_what_cannot_be_rounded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReverieError, match="float64"):
        quantize(nn.Linear(32, 32).double())
    monkeypatch.setattr(int8, "available", lambda: False)
    with pytest.raises(ReverieError, match="8-bit"):
        quantize(nn.Linear(32, 32))
