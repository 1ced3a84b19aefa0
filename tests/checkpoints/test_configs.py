"""Do configs survive the way to JSON and back, and are those refused that our networks cannot follow?"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from reverie.checkpoints.configs import (
    ScheduleConfig,
    read_autoencoder,
    read_clip,
    read_schedule,
    read_text,
    read_unet,
    write_autoencoder,
    write_clip,
    write_schedule,
    write_text,
    write_unet,
)
from reverie.diffusion.schedule import rectified_flow, scaled_linear, squared_cosine, zero_terminal_snr
from reverie.errors import ReverieError
from reverie.models.autoencoder import AUTOENCODERS, AutoencoderConfig
from reverie.models.clip import CLIPConfig
from reverie.models.clip_presets import CLIPS
from reverie.models.unet import UNETS, UNet, UNetConfig


def via_json(raw: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(raw))


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_unet(config: UNetConfig) -> None:
    assert read_unet(via_json(write_unet(config)), "") == config


@pytest.mark.parametrize("name", ["sdxl", "bk-sdm-tiny", "sdxs-0.9", "ssd-1b", "koala-1b"])
def test_diffusers_builds_the_same_unet(name: str) -> None:
    config = UNETS[name]
    with torch.device("meta"):
        ours, theirs = UNet(config), UNet2DConditionModel.from_config(via_json(write_unet(config)))
    shapes = ({name: tensor.shape for name, tensor in net.state_dict().items()} for net in (ours, theirs))
    assert next(shapes) == next(shapes)


@pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS)
def test_autoencoder(config: AutoencoderConfig) -> None:
    raw = via_json(write_autoencoder(config))
    assert read_autoencoder(raw, "") == config
    with torch.device("meta"):
        assert AutoencoderKL.from_config(raw).config.scaling_factor == config.scaling_factor


@pytest.mark.parametrize("config", CLIPS.values(), ids=CLIPS)
def test_clip(config: CLIPConfig) -> None:
    assert read_clip(via_json(write_clip(config)), "") == config
    assert read_text(via_json(write_text(config.text, "CLIPTextModel")), "") == config.text


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear", "squared_cosine"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_schedule(beta_schedule: str, prediction: str, zero_terminal_snr: bool) -> None:
    config = ScheduleConfig(beta_schedule, 0.001, 0.02, 500, prediction, zero_terminal_snr, "trailing", 0)
    assert read_schedule(via_json(write_schedule(config)), "") == config
    assert len(config.schedule()) == 500


def test_schedule_tables() -> None:
    assert ScheduleConfig().schedule().alphas_cumprod.equal(scaled_linear().alphas_cumprod)
    zero = ScheduleConfig(beta_schedule="squared_cosine", zero_terminal_snr=True).schedule()
    assert zero.alphas_cumprod.equal(zero_terminal_snr(squared_cosine()).alphas_cumprod)


def test_the_published_files_of_sd() -> None:
    """As they stand on the Hub, with few keys (SD 1.4) and an old end of text."""
    unet = {
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    assert read_unet(unet, "") == UNETS["sd15"]
    sd21 = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    assert read_unet({**unet, **sd21, "sample_size": 96, "dual_cross_attention": False}, "") == UNETS["sd21"]
    text = {"eos_token_id": 2, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    assert read_text({**text, "projection_dim": 768}, "") == CLIPS["ViT-L/14"].text
    pndm = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
    assert read_schedule({**pndm, "steps_offset": 1}, "") == ScheduleConfig()


def test_the_published_files_of_smaller_unets() -> None:
    """As BK-SDM's repository has them (e13670c), and SSD-1B's names the depths layer by layer."""
    down, up = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
    tiny = {"block_out_channels": [320, 640, 1280], "down_block_types": down, "up_block_types": up}
    tiny |= {"layers_per_block": 1, "cross_attention_dim": 768, "sample_size": 64, "mid_block_type": None}
    assert read_unet(tiny, "") == UNETS["bk-sdm-tiny"]
    v2 = {"attention_head_dim": [5, 10, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    assert read_unet({**tiny, **v2}, "") == UNETS["bk-sdm-v2-tiny"]
    layerwise = {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    }
    xl = write_unet(UNETS["sdxl"])
    assert read_unet({**xl, **layerwise}, "") == UNETS["ssd-1b"]
    vega = {"transformer_layers_per_block": [1, 1, 2], "reverse_transformer_layers_per_block": [[2, 2, 2], 1, 1]}
    assert read_unet({**xl, **layerwise, **vega}, "") == UNETS["segmind-vega"]


SD15 = write_unet(UNETS["sd15"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"class_embed_type": "timestep"},
            "class_embed_type is 'timestep', which is not supported; it should be null or",
        ),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06, which is not supported; it should be 1e-05"),
        (
            {"down_block_types": ["AttnDownBlock2D"] * 4},
            "down_block_types is 'AttnDownBlock2D', which is not supported",
        ),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types is ['UpBlock2D', "),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type is 'UNetMidBlock2DSimpleCrossAttn', w"),
        ({"only_cross_attention": [True]}, "only_cross_attention is [True], which is not supported; it should be a w"),
        (
            {"transformer_layers_per_block": [[1, 2], 1, 1, 1]},
            "transformer_layers_per_block is [[1, 2], 1, 1, 1], which is not supported",
        ),
        (
            {"reverse_transformer_layers_per_block": [1, 1]},
            "reverse_transformer_layers_per_block is [1, 1], which is not supported; it should be 4 numbers or lists",
        ),
        (
            {"reverse_transformer_layers_per_block": [1, [1, 1], 1, 1]},
            "reverse_transformer_layers_per_block is [1, 1], which is not supported; it should be a whole number, or 3",
        ),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim is [8, 8], which is not supported; it should be a whole"),
        (
            {"layers_per_block": [1, 2, 2, 2]},
            "layers_per_block is [1, 2, 2, 2], which is not supported; it should be the",
        ),
        (
            {"addition_embed_type": "image"},
            "addition_embed_type is 'image', which is not supported; it should be null or",
        ),
        ({"block_out_channels": None}, "block_out_channels is missing"),
    ],
)
def test_unet_refusals(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ReverieError) as caught:
        read_unet({**SD15, **change}, "unet/config.json")
    assert str(caught.value).startswith(f"unet/config.json: {told}")


def test_rectified_flow_says_its_shift() -> None:
    flow = ScheduleConfig(prediction="flow", shift=3.0)
    assert read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "s") == flow
    assert read_schedule(write_schedule(flow), "s") == flow
    solver = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 3.0}
    assert read_schedule(solver, "s") == flow
    assert rectified_flow(shift=3.0).sigmas.equal(flow.schedule().sigmas)


def test_other_refusals() -> None:
    autoencoder = write_autoencoder(AUTOENCODERS["sd"])
    with pytest.raises(ReverieError, match=r"^a: shift_factor is 0.1159, which is not supported"):
        read_autoencoder({**autoencoder, "shift_factor": 0.1159}, "a")
    with pytest.raises(ReverieError, match=r"^a: up_block_types is \['UpDecoderBlock2D'\]"):
        read_autoencoder({**autoencoder, "up_block_types": ["UpDecoderBlock2D"]}, "a")
    for key, given in (
        ("_class_name", "AsymmetricAutoencoderKL"),
        ("patch_size", 0),
        ("patch_size", "2"),
        ("block_out_channels", 5),
    ):
        with pytest.raises(ReverieError, match=rf"^a: {key} is {given!r}, which is not supported"):
            read_autoencoder({**autoencoder, key: given}, "a")
    with pytest.raises(
        ReverieError, match=r"^s: beta_schedule is None.* one of scaled_linear, linear, squaredcos_cap_v2"
    ):
        read_schedule({"_class_name": "ScoreSdeVeScheduler"}, "s")
    with pytest.raises(ReverieError, match=r"^s: use_dynamic_shifting is True, which is not supported"):
        read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "s")
    with pytest.raises(ReverieError, match=r"^s: prediction_type is 'flow'"):
        read_schedule({"beta_schedule": "linear", "prediction_type": "flow"}, "s")
    with pytest.raises(ReverieError, match="diffusers has no U-Net with transformer depth 1 in its last level and 2"):
        write_unet(replace(UNETS["sd15"], transformer_depth=(1, 1, 1, 1), mid_transformer_depth=2))
