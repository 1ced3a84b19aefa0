"""Do ControlNets steer by what they are given, when they are told to, and together?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from reverie.adapters.control import Control, bind_controls
from reverie.diffusion.denoiser import Network
from reverie.errors import ReverieError
from reverie.generate.conditioning import encode
from reverie.generate.sample import guided_denoiser, noise_levels
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.requests.parts import ControlInput
from reverie.requests.pictures import TextToImage
from reverie.system import Conditioning, StableDiffusion

PICTURE = Image.linear_gradient("L")


def control_for(system: StableDiffusion, seed: int = 0, **settings: float) -> Control:
    """Make a control of random weights for a system."""
    torch.manual_seed(seed)
    network = ControlNet(ControlNetConfig(system.unet.config, hint_widths=(4, 4, 4, 4))).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Control(network, PICTURE, **settings)


@torch.no_grad()
def predicted(system: StableDiffusion, controls: list[Control], t: float = 500, size: int = 8) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(2, system.unet.config.in_channels, size, size)
    return bind_controls(system, controls)(system.encode_prompt(["a bear", ""]))(x, torch.full((2,), t))


@pytest.mark.parametrize("kind", ["tiny", "tiny_xl"])
def test_what_the_network_answers_is_added(kind: str, request: pytest.FixtureRequest) -> None:
    system = request.getfixturevalue(kind)
    control, conditioning = control_for(system), system.encode_prompt(["a bear", ""])
    torch.manual_seed(1)
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0)
    told = (conditioning.pooled, conditioning.sizes)
    with torch.no_grad():
        pixels = PICTURE.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS).get_flattened_data()
        hint = torch.tensor(pixels).view(1, 64, 64, 3).permute(0, 3, 1, 2) / 255
        embedded = control.network.embed_hint(hint).expand(2, -1, -1, -1)
        residuals = control.network(x, t, conditioning.tokens, embedded, *told)
        expected = system.unet(x, t, conditioning.tokens, *told, residuals=residuals)
    assert torch.allclose(predicted(system, [control]), expected, atol=1e-6)
    assert (expected - predicted(system, [])).abs().max() > 0.01


def test_weights_add_up(tiny: Pipeline) -> None:
    """Two halves of one control are the whole, and others join."""
    whole, half = control_for(tiny), control_for(tiny, weight=0.5)
    assert torch.allclose(predicted(tiny, [half, half]), predicted(tiny, [whole]), atol=1e-5)
    assert torch.equal(predicted(tiny, [control_for(tiny, weight=0.0)]), predicted(tiny, []))
    other = control_for(tiny, seed=5)
    assert torch.allclose(predicted(tiny, [whole, other]), predicted(tiny, [other, whole]), atol=1e-5)
    assert not torch.allclose(predicted(tiny, [whole, other]), predicted(tiny, [whole]), atol=1e-3)


@pytest.mark.parametrize(
    ("start", "end", "active"), [(0, 1, (1, 1, 1)), (0, 0.4, (1, 0, 0)), (0.4, 0.6, (0, 1, 0)), (1, 1, (0, 0, 1))]
)
def test_start_and_end(start: float, end: float, active: tuple[int, ...], tiny: Pipeline) -> None:
    control = control_for(tiny, start=start, end=end)
    told = [not torch.equal(predicted(tiny, [control], t), predicted(tiny, [], t)) for t in (999, 499.5, 0)]
    assert told == [bool(at) for at in active]


def test_the_hint_is_embedded_once_for_each_size(tiny: Pipeline) -> None:
    control = control_for(tiny)
    calls: list[tuple[int, ...]] = []
    control.network.controlnet_cond_embedding.register_forward_hook(lambda *given: calls.append(given[1][0].shape))
    bind = bind_controls(tiny, [control])
    with torch.no_grad():
        for size in (8, 8, 16, 8):
            bind(tiny.encode_prompt(["a"]))(torch.zeros(1, 4, size, size), torch.tensor([500.0]))
    assert calls == [(1, 3, 64, 64), (1, 3, 128, 128)]


def test_an_inpainting_model_takes_a_control_of_four_channels(tiny: Pipeline) -> None:
    control = control_for(tiny)
    masked = replace(tiny, unet=UNet(replace(tiny.unet.config, in_channels=9)).eval())
    assert predicted(masked, [control]).shape == (2, 4, 8, 8)


def test_a_pooled_control_acts_on_the_prompted_half(tiny: Pipeline) -> None:
    """diffusers 0.42.1 (pipeline_controlnet.py): `guess_mode or global_pool_conditions` leaves the other half alone."""
    plain = control_for(tiny)
    plain.network.control = replace(plain.network.control, pooled=True)
    both = replace(tiny.encode_prompt(["", "a bear"]), prompted=torch.tensor([0.0, 1.0]))
    torch.manual_seed(1)
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0)
    with torch.no_grad():
        steered, free = bind_controls(tiny, [plain])(both)(x, t), tiny.network(both)(x, t)
    assert torch.allclose(steered[0], free[0], atol=1e-6)
    assert not torch.allclose(steered[1], free[1], atol=1e-3)


def test_a_union_is_told_the_kind(tiny: Pipeline) -> None:
    """In the order of xinsir's controlnet-union-sdxl-1.0: openpose, depth, softedge, canny, normal, segment."""
    network = ControlNet(ControlNetConfig(tiny.unet.config, hint_widths=(4, 4, 4, 4), kinds=6, fusing_heads=2)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    seen = []
    network.register_forward_hook(lambda _, args, kwargs, out: seen.append(kwargs["kind"]), with_kwargs=True)
    depth, normal = (predicted(tiny, [Control(network, PICTURE, kind=kind)]) for kind in ("depth", "normal"))
    assert seen == [1, 4]
    assert not torch.allclose(depth, normal, atol=1e-3)
    for kind in (None, "tile"):
        with pytest.raises(ReverieError, match=f"kind is {kind}; choose from openpose, depth, softedge, canny, normal"):
            Control(network, PICTURE, kind=kind)
    with pytest.raises(ReverieError, match="is for one kind of pictures; leave out kind depth"):
        Control(control_for(tiny).network, PICTURE, kind="depth")


def test_guidance_marks_what_it_goes_towards(tiny: Pipeline) -> None:
    seen = []

    def bind(conditioning: Conditioning) -> Network:
        seen.append(conditioning.prompted)
        return tiny.network(conditioning)

    request = TextToImage(prompt="a bear AND an apple", seed=1, steps=2, guidance=5)
    denoise = guided_denoiser(tiny, request, encode(tiny, request), noise_levels(tiny, request), rows=2, bind=bind)
    denoise(torch.randn(2, 4, 4, 4), 1.0)
    assert [mark.tolist() for mark in seen if mark is not None] == [[0, 0, 1, 1, 1, 1]]


def test_weights_have_no_upper_bound(tiny: Pipeline) -> None:
    """diffusers' own tests of ControlNets steer at 10."""
    assert ControlInput(model="x", image=PICTURE, weight=10).weight == 10
    ten, one = predicted(tiny, [control_for(tiny, weight=10)]), predicted(tiny, [control_for(tiny)])
    assert not torch.allclose(ten, one, atol=1e-3)


def test_refusals(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    with pytest.raises(ReverieError, match=r"context of 16; the model has \(8, 16\) and 32: give one of the same"):
        bind_controls(tiny_xl, [control_for(tiny)])
    with pytest.raises(ReverieError, match=r"control from 0.5 to 0.2 is not possible"):
        control_for(tiny, start=0.5, end=0.2)
