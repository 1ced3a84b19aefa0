"""Does every layout's key find the layer it means? All of the tiny models, and names of the official ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reverie.adapters import lora
from reverie.checkpoints.adapter_keys import canonical, group, targets
from reverie.checkpoints.compvis import places, unet
from reverie.models.unet import UNETS, UNet
from reverie.pipeline import Pipeline

from .conftest import pairs

LAYERS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "net.2",
    "conv1",
    "conv_shortcut",
    "time_emb_proj",
    "samplers.0.conv",
)
Name = Callable[[str], tuple[str, str]]


def dotted(prefix: str, down: str, up: str) -> Name:
    return lambda layer: (f"{prefix}{layer}{down}", f"{prefix}{layer}{up}")


def underscored(prefix: str) -> Name:
    return lambda layer: tuple(f"{prefix}{layer.replace('.', '_')}.lora_{way}.weight" for way in ("down", "up"))


LAYOUTS = {
    "kohya": (underscored("lora_unet_"), underscored("lora_te1_"), underscored("lora_te2_")),
    "diffusers": tuple(
        dotted(prefix, ".lora.down.weight", ".lora.up.weight")
        for prefix in ("unet.", "text_encoder.", "text_encoder_2.")
    ),
    "peft": tuple(
        dotted(prefix, ".lora_A.weight", ".lora_B.weight") for prefix in ("unet.", "text_encoder.", "text_encoder_2.")
    ),
    "peft_named": tuple(
        dotted(f"{prefix}base_model.model."[len(prefix) :] + prefix, ".lora_A.default.weight", ".lora_B.default.weight")
        for prefix in ("unet.", "text_encoder.", "text_encoder_2.")
    ),
    "diffusers_text": (
        dotted("unet.", ".lora.down.weight", ".lora.up.weight"),
        dotted("text_encoder.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        dotted("text_encoder_2.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tiny_xl: Pipeline, write: Callable[..., Path], layout: str) -> None:
    networks = (tiny_xl.unet, *tiny_xl.text_encoders)
    state, wanted = {}, {}
    for network, name in zip(networks, LAYOUTS[layout], strict=True):
        for layer, (down, up) in pairs(network, *LAYERS, "q_proj", "fc1").items():
            below, above = name(layer)
            state |= {below: down, above: up}
            module = network.get_submodule(layer)
            wanted[module] = module.weight + (up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
    with lora.apply(tiny_xl, [(write(state), 1.0, 1.0)]):
        for module, weight in wanted.items():
            torch.testing.assert_close(module.weight, weight)
    assert len(wanted) > 30


def test_attention_processors(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """The first layout of diffusers: `attn1.processor.to_out_lora.up.weight`, with or without `unet.` before."""
    for prefix in ("", "unet."):
        state, wanted = {}, {}
        for layer, (down, up) in pairs(tiny.unet, "to_q", "to_k", "to_v", "to_out.0").items():
            attention, _, part = layer.removesuffix(".0").rpartition(".")
            key = f"{prefix}{attention}.processor.{part}_lora"
            state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
            module = tiny.unet.get_submodule(layer)
            wanted[module] = module.weight + up @ down
        with lora.apply(tiny, [(write(state), 1.0, 1.0)]):
            for module, weight in wanted.items():
                torch.testing.assert_close(module.weight, weight)


def test_one_encoder_is_the_first(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    layer = "encoder_layers_0_mlp_fc1"
    one, two = targets(tiny.unet, tiny.text_encoders), targets(tiny_xl.unet, tiny_xl.text_encoders)
    for prefix in ("lora_te_", "lora_te1_"):
        found, unknown = group([f"{prefix}text_model_{layer}.alpha"])
        assert ([canonical(name) for name in found], unknown) == ([f"te1 {layer}"], [])
    assert one[f"te1 {layer}"].network == "te1"
    assert f"te2 {layer}" in two
    assert f"te2 {layer}" not in one


def test_prefixes_of_programs() -> None:
    """ComfyUI 0.3.64 (comfy/lora.py), OneTrainer 23df383 (modules/model: lora_text_encoders), SimpleTuner bc8e6ab,
    sd-scripts 48d368f (networks/oft.py), diffusers 0.15 (loaders.py: text_encoder_lora_state_dict)."""
    layer = "encoder_layers_3_self_attn_q_proj"
    same = {
        "unet mid_block_attentions_0_proj_in": (
            "lora_unet_mid_block_attentions_0_proj_in",
            "lycoris_mid_block_attentions_0_proj_in",
            "oft_unet_mid_block_attentions_0_proj_in",
            "base_model.model.mid_block.attentions.0.proj_in",
            "base_model.model.unet.mid_block.attentions.0.proj_in",
            "unet._orig_mod.mid_block.attentions.0.proj_in",
        ),
        "unet middle_block_1_proj_in": ("diffusion_model.middle_block.1.proj_in", "lora_unet_middle_block_1_proj_in"),
        f"te1 {layer}": (
            "lora_te_text_model_" + layer,
            "text_encoder.encoder.layers.3.self_attn.q_proj",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
            "text_encoder.text_model.encoder.layers.3.self_attn.to_q",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj",
            "text_encoders.clip_h.transformer.text_model.encoder.layers.3.self_attn.q_proj",
            "base_model.model.text_model.encoder.layers.3.self_attn.q_proj",
            "base_model.model.encoder.layers.3.self_attn.q_proj",
            "lycoris_text_model_" + layer,
        ),
        f"te2 {layer}": (
            "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj",
            "text_encoders.clip_g.transformer.text_model.encoder.layers.3.self_attn.q_proj",
            "lora_te2_text_model_" + layer,
        ),
        "te1 encoder_layers_3_self_attn_out_proj": ("text_encoder.text_model.encoder.layers.3.self_attn.to_out",),
    }
    assert {name: canonical(name) for names in same.values() for name in names} == {
        name: wanted for wanted, names in same.items() for name in names
    }


def test_official_names() -> None:
    """SDXL's LoRAs of sd-scripts name the original code's blocks; SD 1's and diffusers' those of diffusers."""
    block, attended = "transformer_blocks", "attentions"
    names = {
        "sdxl": {
            f"input_blocks.4.1.{block}.0.attn1.to_q": f"down_blocks.1.{attended}.0.{block}.0.attn1.to_q",
            f"input_blocks.8.1.{block}.9.ff.net.0.proj": f"down_blocks.2.{attended}.1.{block}.9.ff.net.0.proj",
            "input_blocks.7.0.skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
            "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
            "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
            "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
            "output_blocks.5.1.proj_out": "up_blocks.1.attentions.2.proj_out",
            "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
        },
        "sd15": {
            "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
            "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
            "output_blocks.11.1.proj_out": "up_blocks.3.attentions.2.proj_out",
        },
    }
    for family, table in names.items():
        with torch.device("meta"):
            network = UNet(UNETS[family])
        layers = [name for name, module in network.named_modules() if hasattr(module, "weight")]
        found = {place.name: ours for ours, place in places(layers, unet(UNETS[family]), "").items()}
        assert {theirs: found[theirs] for theirs in table} == table
        # With underscores for dots, as the keys have it, no two names of different layers are one.
        flat = {(name.replace(".", "_"), ours) for theirs, ours in found.items() for name in (theirs, ours)}
        assert len({name for name, _ in flat}) == len(flat)


def test_no_two_layers_share_a_name(tiny_xl: Pipeline) -> None:
    """The layers' paths with underscores stay apart, and the original code's names from them."""
    modules = [name for name, module in tiny_xl.unet.named_modules() if hasattr(module, "weight")]
    flat = {name.replace(".", "_") for name in modules}
    assert len(flat) == len(modules)
    known = targets(tiny_xl.unet, tiny_xl.text_encoders)
    ours = {name for name in known if name.startswith("unet ")}
    assert {known["unet " + name.replace(".", "_")].module for name in modules} == {known[name].module for name in ours}


def test_unknown_parts_are_listed() -> None:
    """A weight is an (IA)3 only where it is said on which side it acts, as LyCORIS' always do."""
    assert group(["lora_unet_x.what", "y", "unet.x.weight"]) == ({}, ["lora_unet_x.what", "y", "unet.x.weight"])
    assert group(["lora_unet_x.weight", "lora_unet_x.on_input", "bundle_emb.cat.clip_l"]) == (
        {"lora_unet_x": {"ia3": "lora_unet_x.weight", "on_input": "lora_unet_x.on_input"}},
        [],
    )
