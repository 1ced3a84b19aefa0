"""Are ControlNets read from what diffusers saves, and from files in the layout of their author?"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from safetensors.torch import save_file
from torch import Tensor

from reverie.adapters.control import PREFIX, load_controlnet, places, read_controlnet
from reverie.checkpoints.weights import blueprint
from reverie.errors import ReverieError
from reverie.models.controlnet import CONTROLNETS, ControlNet, ControlNetConfig
from reverie.models.unet import UNet, UNetConfig

TINY = ControlNetConfig(
    UNetConfig(block_out_channels=(8, 16, 24, 24), num_heads=(2, 2, 2, 2), cross_attention_dim=12, norm_num_groups=4),
    hint_widths=(4, 6, 8, 12),
)
OFFICIAL = {  # ControlNet of 2023, models/cldm_v15.yaml: some of each kind, and how many there are of it
    "time_embed.0.weight": (1280, 320),
    "time_embed.2.bias": (1280,),
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "input_blocks.11.0.out_layers.3.bias": (1280,),
    "input_hint_block.0.weight": (16, 3, 3, 3),
    "input_hint_block.2.weight": (16, 16, 3, 3),
    "input_hint_block.4.weight": (32, 16, 3, 3),
    "input_hint_block.12.weight": (256, 96, 3, 3),
    "input_hint_block.14.weight": (320, 256, 3, 3),
    "zero_convs.0.0.weight": (320, 320, 1, 1),
    "zero_convs.11.0.weight": (1280, 1280, 1, 1),
    "middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
    "middle_block.2.out_layers.0.weight": (1280,),
    "middle_block_out.0.weight": (1280, 1280, 1, 1),
}


@pytest.fixture(scope="module")
def controlnet() -> ControlNet:
    """Give a tiny one of random weights, the silent ones too."""
    torch.manual_seed(0)
    module = ControlNet(TINY).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def assert_same(a: ControlNet, b: ControlNet) -> None:
    theirs = b.state_dict()
    assert a.control == b.control
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def original(module: ControlNet, prefix: str = PREFIX) -> dict[str, Tensor]:
    """Lay the weights out as lllyasviel does."""
    state = module.state_dict()
    return {place.name: state[ours] for ours, place in places(module.control, list(state), prefix).items()}


def test_official_names_and_shapes() -> None:
    module = blueprint(partial(ControlNet, CONTROLNETS["sd15"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in original(module, "").items()}
    assert shapes.items() >= OFFICIAL.items()
    assert len(shapes) == len(module.state_dict()) == 340
    assert sum(name.startswith("zero_convs.") for name in shapes) == 2 * 12
    assert sum(name.startswith("input_hint_block.") for name in shapes) == 2 * 8


@pytest.mark.parametrize("name", CONTROLNETS)
def test_the_names_of_the_two_layouts_pair_off(name: str) -> None:
    names = list(blueprint(partial(ControlNet, CONTROLNETS[name])).state_dict())
    table = places(CONTROLNETS[name], names)
    assert list(table) == names
    assert len({place.name for place in table.values()}) == len(names)


def test_a_folder_that_diffusers_saves(controlnet: ControlNet, tmp_path: Path) -> None:
    unet = TINY.unet
    theirs = ControlNetModel(
        block_out_channels=unet.block_out_channels,
        attention_head_dim=unet.num_heads,
        cross_attention_dim=unet.cross_attention_dim,
        norm_num_groups=unet.norm_num_groups,
        conditioning_embedding_out_channels=TINY.hint_widths,
    )
    theirs.load_state_dict(controlnet.state_dict())
    theirs.save_pretrained(tmp_path)
    assert_same(controlnet, load_controlnet(tmp_path))
    assert_same(controlnet, load_controlnet(tmp_path / "diffusion_pytorch_model.safetensors", config=TINY))
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("controlnet_conditioning_channel_order", "bgr"), ("mid_block_type", "MidBlock")):
        with pytest.raises(ReverieError, match=f"{key} is '{value}', which is not supported"):
            read_controlnet({**config, key: value}, "x")


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_of_its_author_s(prefix: str, suffix: str, controlnet: ControlNet, tmp_path: Path) -> None:
    state, file = original(controlnet, prefix), tmp_path / f"x.{suffix}"
    state["model.diffusion_model.out.2.bias"] = torch.zeros(4)  # some hold the whole model
    if suffix == "pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    assert_same(controlnet, load_controlnet(file, config=TINY))
    half = load_controlnet(file, dtype=torch.float16, config=TINY)
    assert half.conv_in.weight.dtype == torch.float16


def test_a_pooled_one(controlnet: ControlNet, tmp_path: Path) -> None:
    """As diffusers 0.42.1 answers where `global_pool_conditions` is true; lllyasviel's say it by their file's name."""
    unet = TINY.unet
    theirs = ControlNetModel(
        block_out_channels=unet.block_out_channels,
        attention_head_dim=unet.num_heads,
        cross_attention_dim=unet.cross_attention_dim,
        norm_num_groups=unet.norm_num_groups,
        conditioning_embedding_out_channels=TINY.hint_widths,
        global_pool_conditions=True,
    )
    theirs.load_state_dict(controlnet.state_dict())
    theirs.save_pretrained(tmp_path)
    ours = load_controlnet(tmp_path)
    x, context, hint = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        down, middle = theirs(x, torch.tensor([7]), context, hint, return_dict=False)
        answer = ours(x, torch.tensor([7.0]), context, ours.embed_hint(hint))
    for mine, wanted in zip(answer, [*down, middle], strict=True):
        torch.testing.assert_close(mine, wanted.expand_as(mine), atol=1e-3, rtol=1e-4)
    for name, pooled in (("control_v11e_sd15_shuffle", True), ("control_v11p_sd15_canny", False)):
        save_file(original(controlnet), tmp_path / f"{name}.safetensors")
        assert load_controlnet(tmp_path / f"{name}.safetensors", config=TINY).control.pooled is pooled


def test_a_union_answers_as_diffusers_does(tmp_path: Path) -> None:
    """diffusers 0.42.1, but for its attention over the pictures of a batch; ComfyUI 0.3.64 attends as we do."""
    torch.manual_seed(0)
    unet = replace(TINY.unet, addition_time_embed_dim=4, projection_input_dim=6 + 6 * 4)
    theirs = ControlNetUnionModel(
        block_out_channels=unet.block_out_channels,
        attention_head_dim=unet.num_heads,
        cross_attention_dim=unet.cross_attention_dim,
        norm_num_groups=unet.norm_num_groups,
        conditioning_embedding_out_channels=TINY.hint_widths,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=30,
        num_control_type=8,
        num_trans_channel=8,
        num_proj_channel=8,
        num_trans_head=2,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for layer in theirs.transformer_layes:
        layer.attn.batch_first = True
    theirs.save_pretrained(tmp_path)
    ours = load_controlnet(tmp_path)
    assert_same(ours, load_controlnet(tmp_path / "diffusion_pytorch_model.safetensors", config=ours.control))
    x, context, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12), torch.rand(2, 3, 64, 64)
    pooled, sizes, t = torch.randn(2, 6), torch.randint(64, (2, 6)), torch.tensor([7, 300])
    kinds = torch.zeros(2, 8)
    kinds[:, 3] = 1
    with torch.no_grad():
        added = {"text_embeds": pooled, "time_ids": sizes}
        told = {"control_type": kinds, "control_type_idx": [3], "added_cond_kwargs": added, "return_dict": False}
        down, middle = theirs(x, t, context, [hint], **told)
        answer = ours(x, t.float(), context, ours.embed_hint(hint), pooled, sizes, kind=3)
        other = ours(x, t.float(), context, ours.embed_hint(hint), pooled, sizes, kind=4)
    for mine, wanted in zip(answer, [*down, middle], strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answer[-1], other[-1], atol=1e-3)
    with pytest.raises(ReverieError, match="knows 8 kinds of pictures; kind is None"):
        ours(x, t.float(), context, ours.embed_hint(hint), pooled, sizes)


def test_differences_are_added_to_the_models_weights(controlnet: ControlNet, tmp_path: Path) -> None:
    """ComfyUI 0.3.64, comfy/controlnet.py: `cd += model_sd[sd_key]` for what the U-Net has under the same name."""
    base = UNet(TINY.unet)
    shared = base.state_dict()
    state = original(controlnet) | {"difference": torch.ones(0)}
    file = tmp_path / "x.safetensors"
    save_file(state, file)
    loaded = load_controlnet(file, config=TINY, base=base).state_dict()
    for name, tensor in controlnet.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor + shared[name] if name in shared else tensor)
    assert {"conv_in.weight", "time_embedding.linear_1.bias", "mid_block.resnets.1.norm1.weight"} <= shared.keys()
    with pytest.raises(ReverieError, match="holds what is to be added to a U-Net; give the model"):
        load_controlnet(file, config=TINY)
    with pytest.raises(ReverieError, match="does not fit this model at "):
        load_controlnet(file, config=TINY, base=UNet(replace(TINY.unet, cross_attention_dim=8)))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("control_add_embedding.linear_1.weight", "of a kind that is not known here: it holds 'control_add_embedding"),
        ("down_blocks.0.motion_modules.0.proj_out.weight", "a SparseCtrl"),
        ("controlnet_extra.weight", "of a kind that is not known here: it holds 'controlnet_extra.weight'"),
    ],
)
def test_other_kinds_are_refused_by_name(name: str, told: str, controlnet: ControlNet, tmp_path: Path) -> None:
    """Names of a union without its kinds, and of guoyww's SparseCtrl."""
    file = tmp_path / "x.safetensors"
    save_file({**controlnet.state_dict(), name: torch.ones(1)}, file)
    with pytest.raises(ReverieError, match=told) as error:
        load_controlnet(file, config=TINY)
    assert "\n" not in str(error.value)


def test_refusals(controlnet: ControlNet, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="no ControlNet at"):
        load_controlnet(tmp_path / "nothing")
    state, file = original(controlnet), tmp_path / "x.safetensors"
    save_file(state, file)
    with pytest.raises(ReverieError, match="is not a ControlNet that is known here"):
        load_controlnet(file)
    del state[f"{PREFIX}zero_convs.3.0.bias"]
    save_file(state, file)
    with pytest.raises(ReverieError, match="is not a ControlNet that is known here"):
        load_controlnet(file, config=TINY)
    with pytest.raises(ReverieError):
        load_controlnet(file, config=replace(TINY, hint_widths=(4, 8)))


def control_lora(net: ControlNet, base: UNet) -> dict[str, Tensor]:
    """Lay out what a Control-LoRA keeps: products of low rank beside the U-Net's weights, and what is its own.

    `net` is changed to the network that they make, by the U-Net's own weights.
    """
    drawn = torch.Generator().manual_seed(3)
    state, own = {"lora_controlnet": torch.ones(0)}, dict(base.named_parameters())
    for ours, place in places(net.control, list(net.state_dict()), "").items():
        tensor = net.get_parameter(ours)
        layer, _, kind = place.name.rpartition(".")
        if ours not in own or kind == "bias":
            state[place.name] = tensor.detach()
            continue
        weight = own[ours].detach().clone()
        if weight.ndim > 1 and "attn1" not in ours:  # some layers are the U-Net's
            down = torch.randn(2, *weight.shape[1:], generator=drawn)
            up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2), generator=drawn)
            state |= {f"{layer}.up": up, f"{layer}.down": down}
            weight += torch.einsum("or,r...->o...", up.flatten(1), down)
        tensor.data.copy_(weight)
    return state


def test_a_control_lora_is_the_u_net_with_changes_of_low_rank(controlnet: ControlNet, tmp_path: Path) -> None:
    """As ComfyUI derives it (comfy/controlnet.py, ControlLora), run by diffusers' network."""
    torch.manual_seed(5)
    base, net = UNet(TINY.unet).eval(), ControlNet(TINY).eval()
    net.load_state_dict(controlnet.state_dict())
    state = control_lora(net, base)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file := tmp_path / "x.safetensors")
    found = load_controlnet(file, base=base)
    assert found.control == TINY
    oracle = ControlNetModel(
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        block_out_channels=TINY.unet.block_out_channels,
        attention_head_dim=2,
        cross_attention_dim=12,
        norm_num_groups=4,
        conditioning_embedding_out_channels=TINY.hint_widths,
    ).eval()
    oracle.load_state_dict(net.state_dict())
    x, hint, said = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64), torch.randn(1, 5, 12)
    with torch.no_grad():
        down, mid = oracle(x, torch.tensor([501]), said, hint, return_dict=False)
        ours = found(x, torch.tensor([501.0]), said, found.embed_hint(hint))
    for a, b in zip(ours, (*down, mid), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    wide = UNet(replace(TINY.unet, in_channels=9))
    wide.load_state_dict({n: t for n, t in base.state_dict().items() if n != "conv_in.weight"}, strict=False)
    wide.conv_in.weight.data[:, :4] = base.conv_in.weight
    assert_same(load_controlnet(file, base=wide), found)


def test_a_control_lora_that_does_not_fit_is_refused(controlnet: ControlNet, tmp_path: Path) -> None:
    base, net = UNet(TINY.unet).eval(), ControlNet(TINY).eval()
    state, file = control_lora(net, base), tmp_path / "x.safetensors"

    def write(**changes: Tensor | None) -> None:
        kept = {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, file)

    write()
    with pytest.raises(ReverieError, match="holds changes of a U-Net; give the model that it steers"):
        load_controlnet(file)
    with pytest.raises(ReverieError, match="does not fit this model at "):
        load_controlnet(file, base=UNet(replace(TINY.unet, cross_attention_dim=8)))
    write(**{"zero_convs.3.0.bias": None})
    with pytest.raises(ReverieError, match=r"is damaged: it lacks 'zero_convs\.3\.0\.bias'"):
        load_controlnet(file, base=base)
    write(**{"input_blocks.99.0.up": torch.ones(1)})
    with pytest.raises(ReverieError, match=r"it holds 'input_blocks\.99\.0\.up', too"):
        load_controlnet(file, base=base)
