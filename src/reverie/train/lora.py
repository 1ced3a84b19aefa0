"""LoRA layers: beside frozen weights, the product of two thin matrices that the forward pass adds.

Source: Hu et al. 2021 (arXiv 2106.09685). The weight is merged anew in every pass, by the same formula as `adapters`
merges the file: what was trained and what is loaded are the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reverie.adapters.deltas import weight_delta
from reverie.checkpoints.save import write_tensors
from reverie.errors import ReverieError
from reverie.train.recipe import section

# Attention's projections, in the U-Net's names (diffusers) and in the text encoder's (transformers).
PREFIXES = {  # kohya's
    "unet": "lora_unet_",
    "text": "lora_te_",
    "text_1": "lora_te1_",  # SDXL's
    "text_2": "lora_te2_",
}
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class LoRASettings:
    """Choose how thin the matrices are and beside which layers; without [lora] in a recipe all weights are trained."""

    rank: int = 0
    alpha: float = 0.0  # the product is scaled by alpha / rank; 0 takes the rank, so by 1
    layers: tuple[str, ...] = PROJECTIONS  # how their names end

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no LoRA can have."""
        if self.rank < 0 or self.alpha < 0:
            raise ReverieError(f"rank = {self.rank}, alpha = {self.alpha} in [lora] of the recipe; give 0 or more")


def settings_of(sections: dict[str, Any]) -> LoRASettings:
    """Read a recipe's [lora]; its rank is 0 where there is none. Raises ReverieError where it makes no LoRA."""
    settings = section(sections, "lora", LoRASettings)
    if "lora" in sections and not settings.rank:
        raise ReverieError("rank = 0 in [lora] makes no LoRA; give a rank such as 16, or leave [lora] out")
    return settings


class LowRank(nn.Module):
    """Add a trainable product, up times down, to a frozen weight; it starts at 0."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        if rank > (most := min(len(weight), weight[0].numel())):
            raise ReverieError(f"rank = {rank} in [lora] of the recipe is not thin: a layer has {most}; give less")
        self.alpha, self.scale = alpha, alpha / rank
        self.down = nn.Parameter(torch.empty(rank, *weight.shape[1:]))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, *[1] * (weight.ndim - 2)))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as kohya's and peft's

    def forward(self, weight: Float[Tensor, "o i ..."]) -> Float[Tensor, "o i ..."]:
        """Return the merged weight."""
        delta = weight_delta({"down": self.down, "up": self.up}, weight)
        assert delta is not None
        return weight + self.scale * delta


def install(network: nn.Module, settings: LoRASettings, kind: str) -> nn.ModuleDict:
    """Put trainable products beside a frozen network's layers; return them by kohya's names of the layers.

    `kind` is a key of PREFIXES. Raises ReverieError where no layer's name ends in one of the settings'.
    """
    added = nn.ModuleDict()
    for name, module in list(_layers(network, settings.layers)):
        product = LowRank(module.weight, settings.rank, settings.alpha or settings.rank)
        added[PREFIXES[kind] + name.replace(".", "_")] = product
        parametrize.register_parametrization(module, "weight", product)
    if not added:
        raise ReverieError(f"no layer's name ends in {', '.join(settings.layers)}; choose other layers in [lora]")
    return added


def export(networks: Iterable[nn.Module], folder: Path) -> None:
    """Write the products of a run into its folder, named after the run, for `--lora FILE`. Raises ReverieError."""
    folder.mkdir(parents=True, exist_ok=True)
    save(networks, folder / f"{folder.resolve().parent.name}.safetensors")


def save(networks: Iterable[nn.Module], file: Path) -> None:
    """Write the products of one or two networks, in the layout of kohya-ss/sd-scripts. Raises ReverieError."""
    tensors: dict[str, Tensor] = {}
    for name, product in (named for network in networks for named in network.named_children()):
        assert isinstance(product, LowRank)
        tensors[f"{name}.lora_down.weight"] = product.down
        tensors[f"{name}.lora_up.weight"] = product.up
        tensors[f"{name}.alpha"] = torch.tensor(float(product.alpha))
    write_tensors(tensors, file, {"ss_network_module": "networks.lora"})


def _layers(network: nn.Module, endings: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{end}" for end in endings)):
            yield name, module
