"""LoRA files of random numbers for the tiny systems, in the layouts that people have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 3

State = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]


def layers(network: nn.Module, *endings: str) -> dict[str, nn.Module]:
    """List a network's linear layers and convolutions whose names end so."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(endings)
    }


def pairs(network: nn.Module, *endings: str, seed: int = 0) -> Pairs:
    """Draw (down, up) for layers: for convolutions the kernel is in `down`, as in LoCon."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, module in layers(network, *endings).items():
        weight = module.weight
        ones = [1] * (weight.ndim - 2)
        down = torch.randn(RANK, *weight.shape[1:], generator=generator)
        drawn[name] = (down, torch.randn(weight.shape[0], RANK, *ones, generator=generator) / 10)
    return drawn


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors to a file in the test's folder."""

    def make(state: State, name: str = "ink.safetensors") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
        else:
            torch.save(state, path)
        return path

    return make
