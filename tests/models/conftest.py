"""Random weights that the networks and their oracles share, and those of a LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.pipeline import Pipeline


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


@pytest.fixture
def ink(tiny: Pipeline, tmp_path: Path) -> Path:
    """Write a LoRA of random matrices for some layers of the tiny model's U-Net."""
    drawn = {}
    for name, part in tiny.unet.named_modules():
        if name.endswith(("attn1.to_q", "resnets.0.conv1", "proj_in")):
            key, shape = f"lora_unet_{name.replace('.', '_')}", part.weight.shape
            drawn[f"{key}.lora_down.weight"] = torch.randn(2, *shape[1:])
            drawn[f"{key}.lora_up.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2))
    save_file(drawn, file := tmp_path / "ink.safetensors")
    return file
