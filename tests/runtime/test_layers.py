"""Is a packed layer's weight there for all who ask for it or set it, and packed again when it computes?"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from reverie.checkpoints.load import load_unet
from reverie.checkpoints.save import save_unet
from reverie.errors import ReverieError
from reverie.models.layers import GEGLU, Attention, TransformerBlock
from reverie.models.unet import UNet
from reverie.runtime import is_packed, kernels, layers, pack, pack_after, transform, winograd
from reverie.runtime.blocks import FastFeedForward
from reverie.runtime.layers import PackedConv2d, PackedLayer, PackedLinear, PackedPointwise

from .test_exact import UNET, error, given

LAYERS = {
    PackedLinear: lambda: nn.Linear(24, 40),
    PackedConv2d: lambda: nn.Conv2d(24, 40, 3, padding=1),
    PackedPointwise: lambda: nn.Conv2d(24, 40, 1),
}


@pytest.fixture(params=LAYERS, ids=lambda kind: kind.__name__)
def layer(request: pytest.FixtureRequest) -> PackedLayer:
    found = pack(nn.Sequential(LAYERS[request.param]()))[0]
    assert type(found) is request.param
    return found


def inputs(layer: nn.Module) -> Tensor:
    return torch.randn(2, 5, 24) if isinstance(layer, nn.Linear) else torch.randn(2, 24, 5, 6)


def holds_packed(layer: PackedLayer) -> bool:
    return layer._parameters["weight"] is None


def plainly(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x, weight, layer.bias, padding=layer.padding)


@torch.no_grad()
def test_it_packs_when_it_computes_and_unpacks_when_asked(layer: PackedLayer) -> None:
    x, first = inputs(layer), layer.weight
    assert not holds_packed(layer)
    y = layer(x)
    assert holds_packed(layer)
    assert error(y, plainly(layer, x, first)) < 1e-6
    assert torch.equal(layer.weight, first)
    assert layer.weight is layer.weight  # which may be written to
    assert not holds_packed(layer)


def pack_conv2d(weight: Tensor) -> kernels.Packed:
    return kernels.pack_conv2d(weight, (2, weight.shape[1], 8, 8), (1, 1), (1, 1), (1, 1))


@torch.no_grad()
@pytest.mark.parametrize("width", [24, 40, 64, 333])
def test_every_bit_comes_back(width: int) -> None:
    """Denormals, zeros with a sign, the largest and the smallest numbers, and weights that do not lie in order."""
    for shape, pack_, axes in (
        ((width, 48), kernels.pack_linear, (0, 1)),
        ((48, width), kernels.pack_linear, (1, 0)),
        ((width, 48, 3, 3), pack_conv2d, (0, 1, 2, 3)),
        ((3, width, 3, 48), pack_conv2d, (1, 3, 0, 2)),
    ):
        bits = torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int64)
        weight = bits.to(torch.int32).view(torch.float32).nan_to_num(0.5).permute(axes)
        back = kernels.unpack(pack_(weight))
        assert back.shape == weight.shape
        assert torch.equal(back.contiguous().view(torch.int32), weight.contiguous().view(torch.int32))
        denormal = torch.full_like(weight, 1e-41).neg()
        assert torch.equal(kernels.unpack(pack_(denormal)), denormal)
        assert (kernels.unpack(pack_(denormal)) != 0).all()


@torch.no_grad()
def test_what_is_added_is_added(layer: PackedLayer) -> None:
    x = inputs(layer)
    y = layer(x)
    add = torch.randn_like(y)
    assert torch.equal(layer(x, add=add), y + add)
    if isinstance(layer, PackedConv2d):
        pixel = torch.randn(2, 40, 1, 1)
        assert torch.equal(layer(x, add=pixel), y + pixel)


@torch.no_grad()
@pytest.mark.parametrize("kind", [PackedLinear, PackedPointwise])
def test_what_is_added_of_another_shape_is_refused(kind: type[PackedLayer]) -> None:
    layer = pack(nn.Sequential(LAYERS[kind]()))[0]
    x = inputs(layer)
    for add in (layer(x)[:1], layer(x)[..., :1]):
        with pytest.raises(ReverieError, match="what is added has shape"):
            layer(x, add=add)


@torch.no_grad()
def test_a_weight_that_is_set_or_written_to_counts(layer: PackedLayer) -> None:
    x, other = inputs(layer), torch.randn_like(layer.weight)
    layer(x)
    layer.weight = nn.Parameter(other)
    assert error(layer(x), plainly(layer, x, other)) < 1e-6
    layer.weight.mul_(2)
    assert error(layer(x), plainly(layer, x, 2 * other)) < 1e-6
    layer.load_state_dict({"weight": other, "bias": torch.zeros(40)})
    assert error(layer(x), plainly(layer, x, other)) < 1e-6


@torch.no_grad()
def test_copies_and_pickles_are_packed_layers_of_their_own(layer: PackedLayer) -> None:
    x = inputs(layer)
    y, weight = layer(x), layer.weight.clone()
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
        other.weight.zero_()
    assert torch.equal(layer.weight, weight)


@torch.no_grad()
def test_layers_that_are_packed_together_can_be_asked_and_set_one_by_one() -> None:
    attention = pack(nn.Sequential(Attention(32, 2)))[0]
    before = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
    x = torch.randn(2, 5, 32)
    attention(x)
    assert attention.to_q.store is attention.to_v.store
    assert error(attention.to_k(x), F.linear(x, before["to_k.weight"])) < 1e-6
    assert holds_packed(attention.to_k)  # and still packed with the others
    attention.to_v.weight = nn.Parameter(2 * before["to_v.weight"])  # set without being asked for
    plain = Attention(32, 2)
    plain.load_state_dict({**before, "to_v.weight": 2 * before["to_v.weight"]})
    assert error(attention(x), plain(x)) < 1e-6
    assert torch.equal(attention.to_q.weight, before["to_q.weight"])
    assert torch.equal(attention.to_v.weight, 2 * before["to_v.weight"])
    pointers = {attention.get_parameter(f"to_{name}.weight").untyped_storage().data_ptr() for name in "qkv"}
    assert len(pointers) == 3


@torch.no_grad()
def test_a_weight_in_two_parts_comes_back_whole() -> None:
    gated = pack(nn.Sequential(GEGLU(32, 48)))[0]
    weight, x = gated.proj.weight.clone(), torch.randn(2, 5, 32)
    y = gated(x)
    assert holds_packed(gated.proj)
    assert error(gated.proj(x), F.linear(x, weight, gated.proj.bias)) < 1e-6
    assert torch.equal(gated(x), y)
    assert torch.equal(gated.proj.weight, weight)


@torch.no_grad()
def test_keys_and_values_are_kept_while_the_context_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = pack(nn.Sequential(Attention(32, 2, 48)))[0]
    x, context, calls = torch.randn(2, 5, 32), torch.randn(2, 7, 48), []
    linear = kernels.linear

    def counted(x: Tensor, *rest: object, **more: object) -> Tensor:
        calls.append(x)
        return linear(x, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "linear", counted)

    def products() -> int:
        calls.clear()
        attention(x, context)
        return len(calls)

    assert products() == 3  # query, key and value at once, output
    assert products() == 2
    before = attention(x, context)
    context.mul_(2)
    assert products() == 3
    assert error(attention(x, context), before) > 1e-3
    attention.to_k.weight.mul_(3)
    assert products() == 3
    assert products() == 2
    attention(x, torch.randn(2, 7, 48))
    calls.clear()
    assert len(attention.contexts) == 1  # the other context is gone


@torch.no_grad()
def test_hooks_on_layers_are_called_as_in_the_plain_block() -> None:
    network, (x, t, context) = UNet(UNET).eval(), given()
    seen: list[tuple[str, Tensor]] = []
    for name, part in network.named_modules():
        if name.endswith(("to_q", "to_k", "attn2", "conv1", "net.0.proj", "proj_out")):
            part.register_forward_hook(lambda module, args, y, name=name: seen.append((name, y)))
    network(x, t, context)
    plain = seen.copy()
    seen.clear()
    pack(network)(x, t, context)
    assert [name for name, _ in seen] == [name for name, _ in plain]
    for (name, ours), (_, theirs) in zip(seen, plain, strict=True):
        if not name.endswith("conv1"):  # takes the embedding along
            assert error(ours, theirs) < 1e-5


@torch.no_grad()
def test_a_packed_network_is_saved_as_it_was(tmp_path: Path) -> None:
    network, (x, t, context) = UNet(UNET).eval(), given()
    save_unet(network, tmp_path / "plain")
    before = pack(network)(x, t, context)
    save_unet(network, tmp_path / "packed")
    plain, ours = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("plain", "packed"))
    assert plain.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in plain.items())
    assert error(load_unet(tmp_path / "packed")(x, t, context), before) < 1e-5


@torch.no_grad()
def test_a_network_may_be_packed_after_some_calls() -> None:
    network, x = nn.Sequential(nn.Linear(24, 40)), torch.randn(2, 24)
    pack_after(2, network)
    states = []
    for _ in range(4):
        network(x)
        states.append(is_packed(network))
    assert states == [False, True, True, True]
    assert not network._forward_hooks


@torch.no_grad()
def test_narrow_products_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' calls would cost more than they gain; the convolutions gain at once."""
    monkeypatch.setattr(transform, "WIDE", 256)
    network, (x, t, context) = UNet(UNET).eval(), given()
    before = network(x, t, context)
    assert error(pack(network)(x, t, context), before) < 1e-5
    kinds = {type(part) for part in network.modules()}
    assert PackedConv2d in kinds
    assert not {PackedLinear, PackedPointwise} & kinds


class Foreign(nn.Linear):
    """Be a layer of a class that nobody packs."""


@torch.no_grad()
def test_a_block_with_one_layer_of_another_class_stays_plain() -> None:
    network = UNet(UNET).eval()
    for part in network.modules():
        if isinstance(part, Attention):
            part.to_k.__class__ = Foreign
    before = network(*given())
    assert error(pack(network)(*given()), before) < 1e-5
    kinds = {type(part) for part in network.modules()}
    assert {TransformerBlock, FastFeedForward} <= kinds


@torch.no_grad()
def test_without_the_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.available()
    monkeypatch.setattr(kernels, "OPERATORS", ("_not_there",))
    kernels.available.cache_clear()
    try:
        assert not is_packed(pack(UNet(UNET)))
    finally:
        kernels.available.cache_clear()


@torch.no_grad()
def test_convolutions_that_the_kernels_do_not_take_stay_plain() -> None:
    for conv in (
        nn.Conv2d(32, 32, 3, groups=4),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 32, 3),
    ):
        assert not is_packed(pack(nn.Sequential(conv)))
    x = torch.randn(1, 32, 9, 9)
    for conv in (nn.Conv2d(32, 48, 3, stride=2, bias=False), nn.Conv2d(32, 16, (1, 3), dilation=(1, 2))):
        before = conv(x)
        assert error(pack(nn.Sequential(conv))(x), before) < 1e-6


@torch.no_grad()
def test_a_convolution_is_packed_for_the_size_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order for another height and width can take 20 times as long."""
    sizes, pack_for = [], kernels.pack_conv2d

    def watched(weight: Tensor, size: torch.Size, *shape: tuple[int, ...]) -> kernels.Packed:
        sizes.append(tuple(size))
        return pack_for(weight, size, *shape)

    monkeypatch.setattr(kernels, "pack_conv2d", watched)
    conv = pack(nn.Sequential(nn.Conv2d(24, 40, 3, padding=1)))[0]
    weight = conv.weight.clone()
    for size in ((2, 24, 5, 6), (1, 24, 5, 6), (1, 24, 7, 6), (1, 24, 5, 6)):
        x = torch.randn(size)
        assert error(conv(x), plainly(conv, x, weight)) < 1e-6
        conv(x)
    assert sizes == [(2, 24, 5, 6), (1, 24, 7, 6), (1, 24, 5, 6)]  # the batch alone changes nothing
    assert torch.equal(conv.weight, weight)


@torch.no_grad()
@pytest.mark.parametrize("padding", [1, 0])
@pytest.mark.parametrize("size", [(2, 5, 6), (1, 1, 1), (3, 8, 8), (1, 9, 9)])
def test_small_images_are_unfolded_where_tiles_multiply(
    size: tuple[int, int, int], padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, height, width = size
    if padding == 0 and height < 3:
        return
    unfolded: list[Tensor] = []
    unfold = kernels.unfold
    monkeypatch.setattr(kernels, "unfold", lambda x: unfolded.append(x) or unfold(x))
    monkeypatch.setattr(kernels, "has_tiles", lambda dtype: True)
    monkeypatch.setattr(layers, "HEAVY", 0)
    monkeypatch.setattr(layers, "SMALL", 0)  # nor by the kernel in C
    monkeypatch.setattr(winograd, "wins", lambda *shape: False)
    plain = nn.Conv2d(24, 40, 3, padding=padding).eval()
    weight, x = plain.weight.clone(), torch.randn(images, 24, height, width)
    exactly = F.conv2d(x.double(), weight.double(), plain.bias.double(), padding=padding)
    packed = pack(nn.Sequential(plain))[0]
    assert isinstance(packed, PackedConv2d)
    for add in (None, torch.randn_like(exactly).float(), torch.randn(1, 40, 1, 1), torch.randn(images, 40, 1, 1)):
        for relu in (False, True):
            wanted = exactly if add is None else exactly + add
            assert error(packed(x, add=add, relu=relu).double(), wanted.relu() if relu else wanted) < 1e-6
    assert len(unfolded) == (8 if padding and height * width <= 64 else 0)
    assert torch.equal(packed.weight, weight)
    assert packed.weight.is_contiguous()
