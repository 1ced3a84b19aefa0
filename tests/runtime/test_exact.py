"""Does every family of networks compute what it did, packed? Against the plain modules, and back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, CLIPVisionConfig, TextTower, TextTowerWithProjection, VisionTower
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.models.unet import UNet, UNetConfig
from reverie.runtime import extension, is_packed, kernels, native, pack, unpack
from reverie.runtime.blocks import BLOCKS
from reverie.runtime.transform import PLAIN

UNET = UNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=1,
    transformer_depth=(1, 0),
    num_heads=(2, 4),
    cross_attention_dim=48,
    norm_num_groups=8,
)
XL = replace(
    UNET,
    transformer_depth=(0, 2),
    mid_transformer_depth=2,
    use_linear_projection=True,
    addition_time_embed_dim=8,
    projection_input_dim=16 + 6 * 8,
)
TEXT = CLIPTextConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=99, eos_token_id=98
)
VISION = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)
VAE = AutoencoderConfig(block_out_channels=(32, 32, 64), layers_per_block=1, norm_num_groups=8)

Case = tuple[nn.Module, Callable[..., object]]


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(channels: int = 4, rows: int = 2, side: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, a different timestep for each row, and a context."""
    return numbers(rows, channels, *side), torch.linspace(900, 100, rows), numbers(rows, 7, 48, seed=2)


def unet(config: UNetConfig, **more: Tensor) -> Case:
    return UNet(config), lambda network: network(*given(config.in_channels), **more)


def controlnet() -> Case:
    hint = numbers(2, 3, 64, 96).sigmoid()
    return (
        ControlNet(ControlNetConfig(UNET, hint_widths=(16, 32, 32, 32))),
        lambda network: network(*given(), network.embed_hint(hint)),
    )


def decoder() -> Case:
    return Autoencoder(VAE), lambda network: network.decode(numbers(1, 4, 6, 5))


def encoder() -> Case:
    return Autoencoder(VAE), lambda network: network.encode(numbers(2, 3, 24, 16)).mean


def tower(kind: type[TextTower], activation: str) -> Case:
    tokens = torch.randint(0, 98, (3, 9), generator=torch.Generator().manual_seed(0))
    return kind(replace(TEXT, hidden_act=activation, projection_dim=24)), lambda network: network(tokens)


CASES: dict[str, Callable[[], Case]] = {
    "SD 1": lambda: unet(UNET),
    "SD 2": lambda: unet(replace(UNET, use_linear_projection=True, num_heads=(1, 2))),
    "SD XL": lambda: unet(XL, pooled=numbers(2, 16), sizes=numbers(2, 6).abs() * 100),
    "inpainting": lambda: unet(replace(UNET, in_channels=9)),
    "told guidance": lambda: unet(replace(UNET, time_cond_proj_dim=20), guidance=torch.tensor([6.5, 6.5])),
    "ControlNet": controlnet,
    "decoder": decoder,
    "encoder": encoder,
    "text": lambda: tower(TextTower, "quick_gelu"),
    "text with projection": lambda: tower(TextTowerWithProjection, "gelu"),
    "vision": lambda: (VisionTower(VISION), lambda network: network(numbers(2, 3, 28, 28))),
}


@pytest.fixture(params=CASES, ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Build a network with every weight at random, none at an initial zero."""
    torch.manual_seed(0)
    network, call = CASES[request.param]()
    for name, parameter in network.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, fan_in**-0.5)
    return network.eval(), call


def flat(result: object) -> list[Tensor]:
    """List the tensors in what a network returned."""
    if isinstance(result, Tensor):
        return [result]
    assert isinstance(result, tuple | list)
    return [tensor for part in result for tensor in flat(part)]


def error(ours: object, theirs: object) -> float:
    pairs = zip(flat(ours), flat(theirs), strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


@torch.no_grad()
def test_packed_computes_the_same(case: Case) -> None:
    network, call = case
    before = call(network)
    assert is_packed(pack(network))
    assert error(call(network), before) < 1e-5
    assert error(call(network), before) < 1e-5  # with all that was kept from the first call


@torch.no_grad()
def test_packed_computes_the_same_without_the_extension(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    network, call = case
    before = call(network)
    monkeypatch.setattr(extension, "library", lambda: None)
    assert error(call(pack(network)), before) < 1e-5


@torch.no_grad()
def test_unpacked_is_what_it_was_to_the_bit(case: Case) -> None:
    network, call = case
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names, classes = [name for name, _ in network.named_parameters()], [type(part) for part in network.modules()]
    before = call(network)
    before_packing = [set(vars(part)) for part in network.modules()]
    call(pack(network))
    unpack(network)
    assert not is_packed(network)
    assert [type(part) for part in network.modules()] == classes
    assert all(vars(part).keys() == held for part, held in zip(network.modules(), before_packing, strict=True))
    assert [name for name, _ in network.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert error(call(network), before) == 0


@torch.no_grad()
def test_everything_wide_is_packed(case: Case) -> None:
    """No convolution, linear layer or block was forgotten: what stays plain has few channels."""
    network, call = case
    call(pack(network))
    for part in network.modules():
        assert type(part) not in BLOCKS
        assert type(part) is not nn.Linear
    shown = {type(part) for part in network.modules()} & PLAIN.keys()
    assert shown


def test_gradients_are_those_of_the_plain_network(case: Case) -> None:
    network, call = case
    sum(tensor.square().sum() for tensor in flat(call(network))).backward()
    plain = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    with torch.no_grad():
        call(pack(network))
    sum(tensor.square().sum() for tensor in flat(call(network))).backward()
    ours = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert ours.keys() == plain.keys()
    worst = max(grad.abs().max().item() for grad in plain.values())
    assert all(torch.allclose(ours[name], grad, rtol=1e-3, atol=1e-5 * worst) for name, grad in plain.items())


@torch.no_grad()
def test_rows_do_not_depend_on_their_batch() -> None:
    network = pack(UNet(UNET).eval())
    x, t, context = given(rows=5)
    together = network(x, t, context)
    for row in range(5):
        alone = network(x[row : row + 1], t[row : row + 1], context[row : row + 1])
        assert error(alone, together[row : row + 1]) < 2e-6


@torch.no_grad()
def test_latents_of_one_pixel_and_of_odd_sides() -> None:
    plain = UNet(UNET).eval()
    for side in ((2, 2), (5, 7), (1, 3)):
        x, t, context = given(side=side)
        before = plain(x, t, context)
        assert error(pack(plain)(x, t, context), before) < 1e-5
        unpack(plain)


@torch.no_grad()
def test_other_types_stay_plain() -> None:
    assert not is_packed(pack(UNet(UNET).half()))
    assert is_packed(pack(UNet(UNET)))
    with torch.device("meta"):
        assert not is_packed(pack(UNet(UNET)))


@torch.no_grad()
@pytest.mark.skipif(not native(torch.bfloat16), reason="this processor does not compute in bfloat16")
def test_bfloat16_is_packed_where_the_processor_computes_in_it() -> None:
    """As near to the exact values as the plain modules are in bfloat16, and back to the bit."""
    torch.manual_seed(0)
    network, (x, t, context) = UNet(UNET).eval(), given()
    exact = network(x, t, context)
    network.to(torch.bfloat16)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    halves = (x.bfloat16(), t, context.bfloat16())
    plain = error(network(*halves).float(), exact)
    assert is_packed(pack(network))
    assert error(network(*halves).float(), exact) < 1.2 * plain
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unpack(network).state_dict().items())


def test_bfloat16_stays_plain_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "native", lambda dtype: dtype == torch.float32)
    assert not is_packed(pack(UNet(UNET).bfloat16()))


@torch.no_grad()
def test_a_packed_network_can_be_cast() -> None:
    network, (x, t, context) = pack(UNet(UNET).eval()), given()
    before = network(x, t, context)
    network.double()
    after = network(x.double(), t, context.double())
    assert after.dtype == torch.float64
    assert error(after.float(), before) < 1e-5
