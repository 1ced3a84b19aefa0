"""Do the U-Nets of the rest of the family, at full size, predict what diffusers' of the same configuration predict?"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import KDownsample2D
from diffusers.models.upsampling import KUpsample2D
from torch import Tensor, nn

from reverie.checkpoints.configs import write_unet
from reverie.checkpoints.families import FAMILIES
from reverie.models.k_unet import KUNet, KUNetConfig
from reverie.models.unet import UNet

NAMES = ("sd2-depth", "sd2-x4-upscaler", "sd21-unclip-l", "sd21-unclip-h", "sd15-edit", "sdxl-edit", "sd15-variations")
CONFIGS = {name: FAMILIES[name].unet for name in NAMES} | {"sd2-x2-upscaler": KUNetConfig()}


def overlapping_weights(network: nn.Module) -> dict[str, Tensor]:
    """Draw weights that share memory: each begins one number after the one before, so that no two are alike."""
    fans = {name: one[0].numel() if one.ndim > 1 else 4 for name, one in network.named_parameters()}
    longest: dict[int, int] = defaultdict(int)
    for name, one in network.named_parameters():
        longest[fans[name]] = max(longest[fans[name]], one.numel() + len(fans))
    drawn = torch.randn(max(longest.values()), generator=torch.Generator().manual_seed(0))
    pools = {fan: drawn[:length] * fan**-0.5 for fan, length in longest.items()}
    weights = {
        name: pools[fans[name]][start : start + one.numel()].view(one.shape)
        for start, (name, one) in enumerate(network.named_parameters())
    }
    return {name: one + 1 if "norm" in name and name.endswith("weight") else one for name, one in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_full_size_unet_predicts_what_diffusers_predicts(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        ours = KUNet(config) if isinstance(config, KUNetConfig) else UNet(config)
        theirs = UNet2DConditionModel.from_config(write_unet(config))
    for module in theirs.modules():
        if isinstance(module, KDownsample2D | KUpsample2D):  # what is no weight does not come from the state dict
            line = torch.tensor([[1.0, 3.0, 3.0, 1.0]]) / (8 if isinstance(module, KDownsample2D) else 4)
            module.kernel = line.T @ line
    weights = overlapping_weights(theirs)
    for network in (ours, theirs):
        network.load_state_dict(weights, assign=True)
        network.eval()
    draw, doubles = torch.Generator().manual_seed(1), isinstance(config, KUNetConfig)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    x, t = random(1, config.in_channels, *[16 if doubles else 8] * 2), torch.tensor([0.3 if doubles else 481.0])
    context, pooled, sizes = random(1, 7, config.cross_attention_dim), None, None
    told: dict[str, Any] = {}
    if isinstance(config, KUNetConfig):
        pooled = random(1, 768)
        told = {"timestep_cond": torch.cat([torch.ones(1, 64), torch.zeros(1, 64), pooled], dim=1)}
    elif config.takes_sizes:
        pooled, sizes = random(1, 1280), torch.tensor([[1024, 768, 0, 8, 512, 512]])
        told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    elif config.projection_input_dim is not None:
        pooled = random(1, config.projection_input_dim)
        told = {"class_labels": pooled}
    elif config.num_class_embeds is not None:
        pooled = torch.tensor([[20.0]])
        told = {"class_labels": pooled[:, 0].long()}
    expected = theirs(x, t[0] if doubles else t, context, **told).sample[:, : 4 if doubles else None]
    output = ours(x, t, context, pooled, sizes)
    assert expected.std() > 0.1
    assert ((output - expected).norm() / expected.norm()).item() <= 1e-5
