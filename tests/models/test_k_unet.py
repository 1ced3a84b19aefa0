"""Does the U-Net that doubles latents compute what diffusers' does, and hold the official one's weights?"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from reverie.checkpoints.configs import read_unet, write_unet
from reverie.errors import ReverieError
from reverie.models.k_unet import KUNet, KUNetConfig
from reverie.runtime.offload import Offloader, by_block

TINY = KUNetConfig(
    block_out_channels=(32, 32, 64, 64),
    layers_per_block=2,
    num_heads=(4, 4, 8, 8),
    cross_attention_dim=16,
    condition_dim=24,
)
# As scripts/convert_k_upscaler_to_diffusers.py of diffusers builds it, of the author's configuration.
OFFICIAL: dict[str, Any] = {
    "block_out_channels": (384, 384, 768, 768),
    "layers_per_block": 4,
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
    "up_block_types": ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
    "in_channels": 8,
    "out_channels": 5,
    "mid_block_type": None,
    "act_fn": "gelu",
    "norm_num_groups": None,
    "cross_attention_dim": 768,
    "attention_head_dim": 64,
    "time_cond_proj_dim": 896,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
}


def test_it_predicts_what_diffusers_predicts() -> None:
    torch.manual_seed(0)
    theirs = UNet2DConditionModel.from_config(write_unet(TINY)).eval()
    ours = KUNet(TINY).eval()
    ours.load_state_dict(theirs.state_dict())
    x, t, context, pooled = torch.randn(2, 8, 16, 24), torch.tensor(-0.3), torch.randn(2, 5, 16), torch.randn(2, 16)
    clean = torch.cat([torch.ones(2, 4), torch.zeros(2, 4), pooled], dim=1)
    with torch.no_grad():
        expected = theirs(x, t, encoder_hidden_states=context, timestep_cond=clean).sample[:, :-1]
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x, t.expand(2), context, pooled), expected, atol=1e-5, rtol=1e-5)


def test_sides_that_do_not_halve_are_filled_by_their_edge() -> None:
    torch.manual_seed(0)
    unet, given = KUNet(TINY).eval(), (torch.zeros(1), torch.zeros(1, 5, 16), torch.zeros(1, 16))
    x = torch.randn(1, 8, 16, 16)
    filled = torch.cat([x[:, :, :15], x[:, :, 14:15]], dim=2)
    with torch.no_grad():
        torch.testing.assert_close(unet(x[:, :, :15], *given), unet(filled, *given)[:, :, :15])
        assert unet(x[:, :, :3, :2], *given).shape == (1, 4, 3, 2)


def test_block_by_block_it_is_the_same() -> None:
    torch.manual_seed(0)
    unet = KUNet(TINY).eval()
    given = torch.randn(1, 8, 8, 8), torch.zeros(1), torch.randn(1, 5, 16), torch.randn(1, 16)
    with torch.no_grad():
        expected, home = unet(*given), [parameter.data_ptr() for parameter in unet.parameters()]
        offloader = Offloader(torch.device("cpu"), by_block)  # kept alive: blocks are fetched by it
        offloader.take(unet)
        assert torch.equal(unet(*given), expected)
    away = sum(parameter.data_ptr() != at for parameter, at in zip(unet.parameters(), home, strict=True))
    assert 0 < away < 20  # of the blocks that were called last


def test_the_official_one_is_read_and_has_the_same_weights() -> None:
    with torch.device("meta"):
        theirs, ours = UNet2DConditionModel(**OFFICIAL), KUNet(KUNetConfig())
    assert read_unet(json.loads(theirs.to_json_string()), "config.json") == KUNetConfig()
    assert read_unet(write_unet(TINY), "config.json") == TINY
    shapes = [{name: one.shape for name, one in network.state_dict().items()} for network in (theirs, ours)]
    assert shapes[0] == shapes[1]


def test_what_does_not_fit_is_said() -> None:
    unet, x, t = KUNet(TINY), torch.zeros(1, 8, 8, 8), torch.zeros(1)
    with pytest.raises(ReverieError, match="also takes the pooled prompt, 16 wide"):
        unet(x, t, torch.zeros(1, 5, 16))
    with pytest.raises(ReverieError, match="act_fn is 'silu', which is not supported"):
        read_unet({**OFFICIAL, "act_fn": "silu"}, "config.json")
