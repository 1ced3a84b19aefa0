"""Does the ControlNet agree with diffusers' ControlNetModel, alone and with the U-Net that it steers?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from reverie.errors import ReverieError
from reverie.models.controlnet import CONTROLNETS, ControlNet, ControlNetConfig
from reverie.models.unet import UNet, UNetConfig

from .conftest import random_weights

SD1 = UNetConfig(block_out_channels=(8, 16, 24, 24), num_heads=(2, 2, 2, 2), cross_attention_dim=12, norm_num_groups=4)
SDXL = UNetConfig(
    block_out_channels=(8, 16, 24),
    transformer_depth=(0, 2, 3),
    mid_transformer_depth=3,
    num_heads=(1, 2, 3),
    cross_attention_dim=20,
    use_linear_projection=True,
    norm_num_groups=4,
    addition_time_embed_dim=8,
    projection_input_dim=10 + 6 * 8,
)
TINY = {
    "sd15": ControlNetConfig(SD1, hint_widths=(4, 6, 8, 12)),
    "sdxl": ControlNetConfig(SDXL),
    "sdxl-small": ControlNetConfig(replace(SDXL, transformer_depth=(0, 0, 0), mid_transformer_depth=0)),
}


def shared(unet: UNetConfig) -> dict[str, Any]:
    """Say in diffusers' words what a U-Net and its ControlNet have in common."""
    return {
        "in_channels": unet.in_channels,
        "block_out_channels": unet.block_out_channels,
        "layers_per_block": unet.layers_per_block,
        "down_block_types": tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in unet.transformer_depth),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if unet.mid_transformer_depth else "UNetMidBlock2D",
        "transformer_layers_per_block": (*(d or 1 for d in unet.transformer_depth[:-1]), unet.mid_transformer_depth),
        "attention_head_dim": unet.num_heads,
        "cross_attention_dim": unet.cross_attention_dim,
        "use_linear_projection": unet.use_linear_projection,
        "norm_num_groups": unet.norm_num_groups,
        "addition_embed_type": "text_time" if unet.projection_input_dim is not None else None,
        "addition_time_embed_dim": unet.addition_time_embed_dim,
        "projection_class_embeddings_input_dim": unet.projection_input_dim,
    }


def oracle_of(config: ControlNetConfig) -> ControlNetModel:
    """Build diffusers' model of the same structure."""
    return ControlNetModel(
        **shared(config.unet),
        conditioning_channels=config.hint_channels,
        conditioning_embedding_out_channels=config.hint_widths,
    )


def unet_oracle(unet: UNetConfig) -> UNet2DConditionModel:
    """Build diffusers' U-Net to go with it."""
    up = tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in unet.transformer_depth[::-1])
    return UNet2DConditionModel(**shared(unet), up_block_types=up)


def pair(config: ControlNetConfig) -> tuple[ControlNet, ControlNetModel]:
    """Build our model and diffusers' around one set of random weights, which they share."""
    ours, oracle = ControlNet(config), oracle_of(config)
    weights = random_weights(oracle)
    oracle.load_state_dict(weights)
    ours.load_state_dict(weights)
    return ours.eval(), oracle.eval()


def inputs(config: UNetConfig, height: int, width: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Draw latents, timesteps and context; the pooled text and the sizes, where taken; and a hint."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, height, width, generator=generator)
    context = torch.randn(2, 7, config.cross_attention_dim, generator=generator)
    hint = torch.rand(2, 3, 8 * height, 8 * width, generator=generator)
    added = []
    if config.projection_input_dim is not None:
        sizes = torch.randint(0, 1024, (2, 6), generator=generator)
        added = [torch.randn(2, 10, generator=generator), sizes]
    return [x, torch.tensor([981.0, 20.5]), context], added, hint


@pytest.mark.parametrize("size", [(8, 16), (13, 11)], ids=["even", "odd"])
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_agrees_with_diffusers(name: str, size: tuple[int, int]) -> None:
    config = TINY[name]
    ours, oracle = pair(config)
    given, added, hint = inputs(config.unet, *size)
    kwargs = dict(zip(("text_embeds", "time_ids"), added, strict=False))
    theirs = oracle(*given, hint, added_cond_kwargs=kwargs)
    expected = [*theirs.down_block_res_samples, theirs.mid_block_res_sample]
    residuals = ours(*given, ours.embed_hint(hint), *added)
    for a, b in zip(residuals, expected, strict=True):
        assert b.std() > 0.1
        assert ((a - b).norm() / b.norm()).item() <= 1e-5


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_the_unet_adds_what_diffusers_adds(name: str) -> None:
    config = TINY[name]
    controlnet, _ = pair(config)
    ours, oracle = UNet(config.unet).eval(), unet_oracle(config.unet).eval()
    weights = random_weights(oracle)
    ours.load_state_dict(weights)
    oracle.load_state_dict(weights)
    given, added, hint = inputs(config.unet, 8, 8)
    residuals = controlnet(*given, controlnet.embed_hint(hint), *added)
    *down, middle = residuals
    theirs = oracle(
        *given,
        added_cond_kwargs=dict(zip(("text_embeds", "time_ids"), added, strict=False)),
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    output = ours(*given, *added, residuals=residuals)
    assert ((output - theirs).norm() / theirs.norm()).item() <= 1e-5
    assert ((output - ours(*given, *added)).norm() / theirs.norm()).item() > 0.1


@pytest.mark.parametrize("name", CONTROLNETS)
def test_full_size_keys_and_shapes_are_those_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        ours, oracle = ControlNet(CONTROLNETS[name]), oracle_of(CONTROLNETS[name])
    shapes = {key: value.shape for key, value in oracle.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


@torch.no_grad()
def test_a_new_one_changes_nothing() -> None:
    config = TINY["sd15"]
    controlnet, unet = ControlNet(config), UNet(config.unet)
    given, _, hint = inputs(config.unet, 8, 8)
    residuals = controlnet(*given, controlnet.embed_hint(hint))
    assert all(not residual.any() for residual in residuals)
    assert unet(*given, residuals=residuals).equal(unet(*given))


def test_wrong_hints_are_refused() -> None:
    controlnet = ControlNet(replace(TINY["sd15"], hint_channels=1))
    with pytest.raises(ReverieError, match="a hint of 20 x 16 pixels has no whole latents"):
        controlnet.embed_hint(torch.zeros(1, 1, 16, 20))
