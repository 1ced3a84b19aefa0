"""Does the U-Net agree with diffusers' UNet2DConditionModel in every family, and refuse what does not fit?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.layers import timestep_embedding
from reverie.models.unet import UNETS, UNet, UNetConfig

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
    "sd15": SD1,
    "sd15-inpainting": replace(SD1, in_channels=9),
    "sd21": replace(SD1, num_heads=(1, 2, 3, 3), use_linear_projection=True),
    "sdxl": SDXL,
    "sdxl-refiner": replace(
        SDXL,
        block_out_channels=(8, 16, 24, 24),
        transformer_depth=(0, 2, 2, 0),
        mid_transformer_depth=2,
        num_heads=(1, 2, 3, 3),
        projection_input_dim=10 + 5 * 8,
    ),
    "small": replace(
        SD1,
        block_out_channels=(12, 16),
        layers_per_block=1,
        transformer_depth=(0, 1),
        num_heads=(3, 4),
        in_channels=3,
        out_channels=6,
        norm_num_groups=2,
    ),
}


SMALL = replace(SD1, layers_per_block=1)
TINY |= {
    "bk-sdm-base": SMALL,
    "bk-sdm-small": replace(SMALL, mid_transformer_depth=None),
    "bk-sdm-tiny": replace(
        SMALL,
        block_out_channels=(8, 16, 24),
        transformer_depth=(1, 1, 1),
        num_heads=(2, 2, 2),
        mid_transformer_depth=None,
    ),
    "ssd-1b": replace(
        SDXL,
        transformer_depth=(0, 2, 4),
        mid_transformer_depth=0,
        up_transformer_depth=((0, 0, 0), (2, 1, 1), (4, 4, 5)),
    ),
    "segmind-vega": replace(SDXL, transformer_depth=(0, 1, 2), mid_transformer_depth=0),
    "koala-700m": replace(SDXL, layers_per_block=1, transformer_depth=(0, 2, 5), mid_transformer_depth=None),
    "koala-1b": replace(SDXL, layers_per_block=1, transformer_depth=(0, 2, 6), mid_transformer_depth=6),
}
TINY["x4-upscaler"] = replace(
    SD1,
    in_channels=7,
    transformer_depth=(0, 1, 1, 1),
    only_cross_attention=(True, True, True, False),
    use_linear_projection=True,
    num_class_embeds=1000,
)
TINY["sdxs"] = replace(TINY["bk-sdm-tiny"], transformer_depth=(0, 1, 1))
TINY["sdxs-0.9"] = replace(
    TINY["bk-sdm-tiny"], use_linear_projection=True, only_cross_attention=(True, False, False), num_heads=(1, 2, 3)
)


def oracle_of(config: UNetConfig) -> UNet2DConditionModel:
    """Build diffusers' model of the same structure; it takes the middle's depth from the last level's."""
    middle, up = config.mid_transformer_depth, config.up_transformer_depth
    depths = [depth or 1 for depth in (*config.transformer_depth[:-1], middle or config.transformer_depth[-1])]
    added = config.projection_input_dim is not None
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        sample_size=config.sample_size,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in config.transformer_depth),
        mid_block_type=None if middle is None else "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in config.transformer_depth[::-1]),
        transformer_layers_per_block=depths,
        reverse_transformer_layers_per_block=up and [[depth or 1 for depth in level] for level in up[::-1]],
        only_cross_attention=config.only_cross_attention or False,
        attention_head_dim=config.num_heads,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_num_groups,
        addition_embed_type="text_time" if added else None,
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=config.projection_input_dim,
        num_class_embeds=config.num_class_embeds,
        time_cond_proj_dim=config.time_cond_proj_dim,
    )


def pair(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    """Build our model and diffusers' around one set of random weights, which they share."""
    with torch.device("meta"):
        ours, oracle = UNet(config), oracle_of(config)
    weights = random_weights(oracle)
    oracle.load_state_dict(weights, assign=True)
    ours.load_state_dict(weights, assign=True)
    return ours.eval(), oracle.eval()


def inputs(config: UNetConfig, height: int, width: int, pooled_dim: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, height, width, generator=generator)
    context = torch.randn(2, 7, config.cross_attention_dim, generator=generator)
    given = [x, torch.tensor([981.0, 20.5]), context]
    if config.projection_input_dim is not None and config.addition_time_embed_dim is not None:
        count = (config.projection_input_dim - pooled_dim) // config.addition_time_embed_dim
        sizes = torch.randint(0, 1024, (2, count), generator=generator)
        given += [torch.randn(2, pooled_dim, generator=generator), sizes]
    if config.num_class_embeds is not None:
        given += [torch.tensor([[350.0], [20.0]])]
    return given


@torch.no_grad()
def check_agrees(config: UNetConfig, given: list[Tensor]) -> None:
    ours, oracle = pair(config)
    x, t, context, *added = given
    kwargs = dict(zip(("text_embeds", "time_ids"), added, strict=False))
    levels = added[0][:, 0].long() if config.num_class_embeds is not None else None
    theirs = oracle(x, t, context, class_labels=levels, added_cond_kwargs=kwargs).sample
    output = ours(*given)
    assert theirs.std() > 0.1
    assert ((output - theirs).norm() / theirs.norm()).item() <= 1e-5


@pytest.mark.parametrize("name", TINY)
def test_agrees_with_diffusers(name: str) -> None:
    check_agrees(TINY[name], inputs(TINY[name], 16, 24))


@torch.no_grad()
def test_takes_the_guidance_as_diffusers_does() -> None:
    config = replace(SD1, time_cond_proj_dim=10)
    ours, oracle = pair(config)
    given, scale = inputs(config, 8, 8), torch.tensor([0.0, 7.5])
    embedded = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=10)
    theirs = oracle(*given, timestep_cond=embedded).sample
    assert ((ours(*given, guidance=scale) - theirs).norm() / theirs.norm()).item() <= 1e-5
    with pytest.raises(ReverieError, match="give `guidance`"):
        ours(*given)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_agrees_with_diffusers_at_odd_sizes(name: str) -> None:
    check_agrees(TINY[name], inputs(TINY[name], 13, 11))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNETS)
def test_agrees_with_diffusers_at_full_size(name: str) -> None:
    check_agrees(UNETS[name], inputs(UNETS[name], 16, 24, pooled_dim=1280))


@pytest.mark.parametrize("name", UNETS)
def test_full_size_keys_shapes_and_norms_are_those_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        ours, oracle = UNet(UNETS[name]), oracle_of(UNETS[name])
    shapes = {key: value.shape for key, value in oracle.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert norms(ours) == norms(oracle)


def norms(model: nn.Module) -> dict[str, tuple[float, int]]:
    """Map each norm to its eps, which outputs hardly show, and its number of groups."""
    kinds = (nn.GroupNorm, nn.LayerNorm)
    return {n: (m.eps, getattr(m, "num_groups", 1)) for n, m in model.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_runs_in_the_type_of_its_weights(dtype: torch.dtype) -> None:
    ours, _ = pair(TINY["sdxl"])
    x, t, context, pooled, sizes = inputs(TINY["sdxl"], 8, 8)
    with torch.no_grad():
        expected = ours(x, t, context, pooled, sizes)
        output = ours.to(dtype)(x.to(dtype), t, context.to(dtype), pooled.to(dtype), sizes)
    assert output.dtype == dtype
    assert ((output.float() - expected).norm() / expected.norm()).item() < 0.1


def test_batching_and_memory_format_do_not_change_a_sample() -> None:
    ours, _ = pair(TINY["sd15"])
    x, t, context = inputs(TINY["sd15"], 8, 8)
    with torch.no_grad():
        batch = ours(x, t, context)
        alone = ours.to(memory_format=torch.channels_last)(x[1:], t[1:], context[1:])
    torch.testing.assert_close(alone, batch[1:], rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    model = UNet(TINY["sdxl"])
    model(*inputs(TINY["sdxl"], 8, 8)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_timestep_embedding_is_cosines_then_sines() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3]), 8).double()
    angles = 3 * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.stack([torch.tensor([1.0] * 4 + [0.0] * 4).double(), torch.cat([angles.cos(), angles.sin()])])
    torch.testing.assert_close(embedding, expected, rtol=1e-6, atol=1e-6)


def test_wrong_inputs_are_refused_in_one_line() -> None:
    model = UNet(TINY["sdxl"])
    x, t, context, pooled, sizes = inputs(TINY["sdxl"], 8, 8)
    with pytest.raises(ReverieError, match="input has 3 channels; this model takes 4"):
        model(x[:, :3], t, context, pooled, sizes)
    with pytest.raises(ReverieError, match="context is 19 wide; this U-Net takes 20"):
        model(x, t, context[..., 1:], pooled, sizes)
    with pytest.raises(ReverieError, match="give `pooled`, `sizes`"):
        model(x, t, context)
    with pytest.raises(ReverieError, match="width 10 and 5 sizes make 50 numbers; this U-Net takes 58"):
        model(x, t, context, pooled, sizes[:, :5])
    with pytest.raises(ReverieError, match="3 levels with 4 transformer depths and 3 head counts"):
        replace(TINY["sdxl"], transformer_depth=(0, 1, 1, 1))
