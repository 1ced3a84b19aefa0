"""What a network of random weights takes, apart from any peer's library, which would add to the memory measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reverie.models.unet import UNet


def random_weights(model: nn.Module) -> dict[str, Tensor]:
    """Draw weights for a model on the meta device that keep activations near 1, so that no denormals slow a side."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in model.state_dict().items():
        fan_in = value[0].numel() if value.ndim > 1 else 4
        weights[name] = torch.randn(value.shape, generator=generator).div_(fan_in**0.5)
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights


class Predict(nn.Module):
    """Take and give tensors alone, as the conversion to another runtime wants them."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predict as the U-Net does."""
        return self.unet(x, t, context)
