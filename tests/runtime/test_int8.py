"""Do rounded layers compute what their rounded numbers say? Against floating point, layer by layer and as a whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models import layers
from reverie.models.unet import UNet
from reverie.runtime import extension, int8, quantize
from reverie.runtime.int8 import (
    Int8Conv2d,
    Int8Linear,
    Int8Pointwise,
    Levels,
    Rounded,
    convolve,
    pack_panels,
    product,
    round_images,
    round_input,
    round_rows,
    round_weight,
)

from .test_exact import UNET, error, given, numbers

pytestmark = pytest.mark.skipif(not int8.available(), reason="this processor multiplies no 8-bit numbers")

LAYERS = {
    Int8Linear: lambda: nn.Linear(24, 40),
    Int8Conv2d: lambda: nn.Conv2d(24, 40, 3, padding=1, stride=2),
    Int8Pointwise: lambda: nn.Conv2d(24, 40, 1, bias=False),
}


BLOCKS = (layers.ResidualBlock, layers.Upsample, layers.TransformerBlock, layers.SpatialTransformer)
fused = pytest.mark.skipif(not int8.fuses(), reason="no extension that multiplies 8-bit numbers was compiled")


@pytest.fixture(params=[pytest.param(True, marks=fused), False], ids=["in C", "by oneDNN"])
def in_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Compute with the extension, or as where there is none."""
    if not request.param:
        monkeypatch.setattr(extension, "library", lambda: None)
    return request.param


def seen(x: Tensor, *, in_c: bool = False) -> Tensor:
    """Return an input as it was rounded."""
    if in_c:
        return values(round_rows(x)) if x.ndim == 3 else values(round_images(x)).permute(0, 3, 1, 2)
    q, scale, zero = round_input(x)
    return scale * (q.float() - zero)


def values(levels: Levels) -> Tensor:
    """Return what levels mean: (images, height, width, channels), or rows as they were."""
    shape = (-1, 1, 1, 1) if len(levels.scales) == len(levels.q) > 1 else (1, 1, -1, 1)
    numbers = levels.scales.double().view(shape) * (levels.q.double() - levels.zeros.view(shape))
    return numbers.view(*levels.shape, -1) if len(levels.q) == 1 and levels.q.shape[1] == 1 else numbers


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
def test_a_layer_computes_what_its_rounded_numbers_say(kind: type[nn.Module], dtype: torch.dtype, in_c: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().to(dtype)
    exact = layer.weight.float().clone()
    quantize(nn.Sequential(layer))
    assert type(layer) is kind
    x = numbers(2, 5, 24).to(dtype) if kind is Int8Linear else numbers(2, 24, 6, 7).to(dtype)
    rounded = seen(x, in_c=in_c).float()
    if in_c and kind is Int8Pointwise:  # each pixel by its own range
        rounded = seen(x.flatten(2).mT, in_c=True).float().mT.view(x.shape)
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
        wanted = F.linear(rounded, weight, bias)
    else:
        wanted = F.conv2d(rounded, weight, bias, stride=layer.stride, padding=layer.padding)
    assert error(y.float(), wanted) < (1e-2 if dtype == torch.bfloat16 else 1e-5)
    assert error(layer(x).float(), y.float()) < (1e-2 if dtype == torch.bfloat16 else 1e-6)  # rounded a second time
    layer.weight = nn.Parameter(2 * layer.weight)
    assert error(layer(x).float(), 2 * wanted - (0 if bias is None else _like(bias, wanted))) < 1e-2


def _like(bias: Tensor, y: Tensor) -> Tensor:
    return bias if y.ndim == 3 else bias[:, None, None]


def test_each_channel_has_a_scale_of_its_own() -> None:
    weight = torch.tensor([[1.1, -2.0], [1000.0, 1.0], [0.0, 0.0]])
    rows, scales = round_weight(weight)
    assert rows.tolist() == [[70, -127], [127, 0], [0, 0]]
    torch.testing.assert_close(scales[:2], torch.tensor([2 / 127, 1000 / 127]), rtol=2e-5, atol=0)


def test_rounded_weights_are_rounded_to_themselves() -> None:
    for seed in range(20):
        weight = numbers(40, 9, 3, 3, seed=seed) * 10.0 ** (seed - 10)
        rows, scales = round_weight(weight)
        again, same = round_weight(rows * scales.view(-1, 1, 1, 1))
        assert torch.equal(again, rows)
        assert torch.equal(same, scales)
        assert (rows.flatten(1).abs().amax(1) == 127).all()


@fused
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 320), (7, 33), (150, 5)])
@pytest.mark.parametrize("normalised", [False, True])
def test_rows_are_rounded_each_by_its_own_range(dtype: torch.dtype, rows: int, width: int, normalised: bool) -> None:
    x = (numbers(1, rows, width) * torch.linspace(0.1, 30, rows)[:, None] + 0.3).to(dtype)
    norm = nn.LayerNorm(width, dtype=dtype)
    norm.load_state_dict({"weight": numbers(width, seed=2), "bias": numbers(width, seed=3)})
    levels = round_rows(x, norm if normalised else None)
    wanted = x.double()
    if normalised:
        wanted = F.layer_norm(wanted, (width,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert_near(levels.scales.view(1, rows, 1), values(levels), wanted)
    span = wanted.amax(-1).clamp(min=0) - wanted.amin(-1).clamp(max=0)
    torch.testing.assert_close(levels.scales.double(), span.flatten() / 255, rtol=1e-4, atol=0)


@fused
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "groups"), [((2, 48, 16, 17), 8), ((1, 20, 5, 4), 4), ((3, 14, 3, 7), 7)])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_images_are_rounded_each_by_its_own_range(
    dtype: torch.dtype, size: tuple[int, ...], groups: int, silu: bool, normalised: bool
) -> None:
    x = (numbers(*size) * torch.linspace(0.2, 9, len(size))[: size[0], None, None, None] + 2).to(dtype)
    norm = nn.GroupNorm(groups, size[1], dtype=dtype)
    norm.load_state_dict({"weight": numbers(size[1], seed=2), "bias": numbers(size[1], seed=3)})
    levels = round_images(x, (1, 2), norm if normalised else None, silu=silu)
    wanted = x.double()
    if normalised:
        wanted = F.group_norm(wanted, groups, norm.weight.double(), norm.bias.double(), norm.eps)
    wanted = F.silu(wanted) if silu else wanted
    by_image = levels.scales.double().view(-1, 1, 1, 1)
    found = (by_image * (levels.q.double() - levels.zeros.view(-1, 1, 1, 1))).permute(0, 3, 1, 2)
    assert_near(by_image, found, F.pad(wanted, (2, 2, 1, 1)))
    span = wanted.amax((1, 2, 3)).clamp(min=0) - wanted.amin((1, 2, 3)).clamp(max=0)
    assert (levels.scales * 255 >= span * 0.999).all()
    assert (levels.scales * 255 <= span + (0.28 if silu else 1e-3 * span)).all()  # as if SiLU's least were there


def assert_near(scales: Tensor, found: Tensor, wanted: Tensor) -> None:
    """Numbers are rounded to the nearest level, and 0 has one."""
    assert ((found - wanted).abs() <= 0.51 * scales + 1e-6).all()
    assert (found[wanted == 0] == 0).all()


@fused
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "outputs", "kernel", "stride", "dilation"),
    [
        ((2, 24, 6, 7), 40, (3, 3), (1, 1), (1, 1)),
        ((1, 18, 9, 8), 130, (3, 1), (2, 1), (2, 1)),
        ((3, 64, 5, 5), 64, (2, 2), (2, 2), (1, 1)),
        ((1, 1500, 4, 15), 20, (3, 3), (1, 2), (1, 1)),  # a panel in parts, and several blocks of rows
        ((2, 16, 14, 15), 70, (1, 1), (1, 1), (1, 1)),
        ((1, 128, 6, 32), 70, (3, 3), (1, 1), (1, 1)),  # by whole tiles, where the processor has them
        ((2, 64, 4, 75), 20, (3, 3), (1, 1), (1, 1)),  # some of whose tiles are in two rows
        ((2, 64, 9, 11), 70, (3, 3), (2, 2), (1, 1)),  # all
    ],
)
def test_images_are_convolved(
    size: tuple[int, int, int, int], outputs: int, kernel: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int], dtype: torch.dtype,
) -> None:  # fmt: skip
    x, bias = numbers(*size).to(dtype), numbers(outputs, seed=3)
    weight = pack_panels(numbers(outputs, size[1], *kernel, seed=2))
    levels = round_images(x, (1, 1))
    exact = (levels.q.double() - levels.zeros.view(-1, 1, 1, 1)) * levels.scales.double().view(-1, 1, 1, 1)
    wanted = F.conv2d(exact.permute(0, 3, 1, 2), weight.to_dense().double(), bias.double(), stride, 0, dilation)
    y = torch.empty(wanted.shape, dtype=dtype, memory_format=torch.channels_last)
    shift = numbers(len(x), outputs, 1, 1, seed=4)
    for add in (None, shift, numbers(*wanted.shape, seed=5).to(dtype)):
        convolve(levels, weight, bias, add, y, stride, dilation)
        exactly = wanted if add is None else wanted + add.double()
        assert error(y.double(), exactly) < (1e-2 if dtype == torch.bfloat16 else 1e-6)
    with pytest.raises(ReverieError, match="what is added has shape"):
        convolve(levels, weight, bias, shift[..., 0], y, stride, dilation)


@fused
@torch.no_grad()
@pytest.mark.parametrize(("rows", "width", "outputs"), [(5, 24, 40), (400, 130, 70), (1, 64, 64), (21, 192, 70)])
def test_products_add_and_gate(rows: int, width: int, outputs: int) -> None:
    x, add = round_rows(numbers(2, rows, width)), numbers(2, rows, outputs, seed=4)
    weight, gate = (pack_panels(numbers(outputs, width, seed=seed)) for seed in (2, 3))
    bias = numbers(outputs, seed=5)
    plain = values(x) @ weight.to_dense().double().T + bias
    gated = plain * F.gelu(values(x) @ gate.to_dense().double().T - bias)
    assert error(product(x, weight, bias, add).double(), plain + add) < 1e-6
    assert error(product(x, weight, bias, gate=(gate, -bias)).double(), gated) < 1e-6
    with pytest.raises(ReverieError, match="what is added has shape"):
        product(x, weight, bias, add[:1])


@fused
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_give_the_very_bits_that_registers_do(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sums are whole numbers, which no order changes."""
    tiles = extension.library()
    monkeypatch.setattr(
        extension, "BUILDS", {name: extension.BUILDS[name] for name in extension.BUILDS if name != "_amx"}
    )
    registers = extension.library.__wrapped__()
    assert tiles is not None
    if registers is None or registers._name == tiles._name:
        pytest.skip("no tiles, or no other build")
    results: list[list[Tensor]] = []
    for library in (tiles, registers):
        monkeypatch.setattr(extension, "library", lambda library=library: library)
        made = []
        for size, stride in (((1, 64, 3, 32), 1), ((2, 64, 3, 75), 1), ((2, 128, 8, 9), 2), ((1, 1536, 3, 16), 1)):
            levels = round_images(numbers(*size).to(dtype), (1, 1))
            weight, shape = pack_panels(numbers(70, size[1], 3, 3, seed=2)), [-(-side // stride) for side in size[2:]]
            y = torch.empty((size[0], 70, *shape), dtype=dtype, memory_format=torch.channels_last)
            made.append(convolve(levels, weight, numbers(70, seed=3), None, y, (stride, stride)))
        for rows, width in ((1, 64), (37, 320), (200, 5120)):
            x, weight, gate = (
                round_rows(numbers(1, rows, width)),
                *(pack_panels(numbers(70, width, seed=s)) for s in (2, 3)),
            )
            made += [
                product(x, weight, None, numbers(1, rows, 70)),
                product(x, weight, None, gate=(gate, None), dtype=dtype),
            ]
        results.append(made)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@fused
@torch.no_grad()
def test_the_gate_is_the_gelu_far_out_too() -> None:
    far = torch.tensor([-1e30, -100.0, -8.0, 8.0, 100.0, 1e30])
    gates = torch.cat([torch.linspace(-7, 7, 1001), far])
    nothing = pack_panels(torch.zeros(len(gates), 8))
    made = product(round_rows(numbers(1, 8)), nothing, torch.ones(len(gates)), gate=(nothing, gates))
    assert torch.allclose(made.double(), F.gelu(gates.double()), atol=3e-7, rtol=1e-6)
    none = product(round_rows(numbers(1, 8)), nothing, torch.ones(len(gates)), gate=(nothing, gates * torch.nan))
    assert none.isnan().all()


@fused
def test_rows_and_images_may_be_larger_than_a_stack() -> None:
    wide = numbers(2, 1 << 22)
    assert error(values(round_rows(wide)).double(), wide.double()) < 0.02
    many = numbers(1 << 16, 16, 1, 1)
    assert error(values(round_images(many)).permute(0, 3, 1, 2).double(), many.double()) < 0.02


@torch.no_grad()
def test_fused_blocks_compute_what_their_layers_do() -> None:
    """Within what rounding does: with a hook in every block, each layer is called by itself."""
    torch.manual_seed(0)
    network, given_to = quantize(UNet(UNET).eval()), given()
    exact = network(*given_to)
    hooks = [
        part.register_forward_pre_hook(lambda *_: None)
        for block in network.modules()
        if isinstance(block, BLOCKS)
        for part in block.modules()
        if isinstance(part, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
    ]
    hooked = network(*given_to)
    for hook in hooks:
        hook.remove()
    assert error(hooked, exact) < 0.03
    assert torch.equal(network(*given_to), exact)


@fused
@torch.no_grad()
def test_the_result_depends_neither_on_threads_nor_on_the_batch() -> None:
    torch.manual_seed(0)
    network, (x, t, context) = quantize(UNet(UNET).eval()), given()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(network(x, t, context))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])
    levels = round_images(x.expand(2, -1, -1, -1)[:, :4].repeat(1, 8, 1, 1), (1, 1))
    alone = round_images(x[1:].repeat(1, 8, 1, 1), (1, 1))
    assert torch.equal(levels.q[1:], alone.q)


@fused
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["x", "context", "time_embedding.linear_2.bias", "mid_block.resnets.0.conv1.weight"])
@torch.no_grad()
def test_what_is_no_number_stays_none(value: float, place: str) -> None:
    """As in the plain network: a broken model draws no picture."""
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    spoiled = {"x": x, "context": context}.get(place)
    (network.get_parameter(place).data if spoiled is None else spoiled).view(-1)[3] = value
    plain = network(x, t, context).isfinite()
    assert not plain.all()
    assert not quantize(network)(x, t, context).isfinite()[~plain].any()


def test_a_network_comes_near_and_gradients_still_flow(in_c: bool) -> None:
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    with torch.no_grad():
        exact = network(x, t, context)
        quantize(network)
        assert 1e-5 < error(network(x, t, context), exact) < (0.05 if in_c else 0.1)
    network(x, t, context).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_what_cannot_be_rounded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReverieError, match="float64"):
        quantize(nn.Linear(32, 32).double())
    monkeypatch.setattr(int8, "available", lambda: False)
    with pytest.raises(ReverieError, match="8-bit"):
        quantize(nn.Linear(32, 32))
