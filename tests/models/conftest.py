"""Random weights that the networks and their oracles share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def random_weights(model: nn.Module) -> dict[str, Tensor]:
    """Draw every parameter, norms and biases too, so that none is invisible at its initial 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        weights[name] = torch.randn(parameter.shape, generator=generator).div_(fan_in**0.5)
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights
