"""Trainable adapters: beside frozen weights, a change of few parameters that each forward pass adds.

Sources: LoRA, Hu et al. 2106.09685; DoRA, Liu et al. 2402.09353; LoHa (FedPara 2108.06098) and LoKr (KronA 2212.10650)
as LyCORIS 2309.14859 begins them. The weight is merged anew in every pass, by the same formulas as `adapters` merges
the file: what was trained and what is loaded are the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reverie.errors import ReverieError, choose
from reverie.models.deltas import weight_delta
from reverie.train.recipe import section

# Attention's projections, in the U-Net's names (diffusers) and in the text encoder's (transformers).
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
LAYOUTS = ("kohya", "diffusers")


def _lora(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Begin at 0: up holds zeros, down is drawn as kohya's and peft's."""
    down = torch.empty(rank, *weight.shape[1:])
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return {"down": down, "up": torch.zeros(len(weight), rank, *[1] * (weight.ndim - 2))}


def _dora(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Begin at 0, with the magnitude that each output has."""
    norm = weight.detach().flatten(1).norm(dim=1)
    return _lora(weight, rank) | {"dora_scale": norm.view(-1, *[1] * (weight.ndim - 1))}


def _loha(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Begin at 0: the first factor of the second product holds zeros."""
    outputs, inputs = len(weight), weight[0].numel()
    return {
        "hada_w1_a": torch.randn(outputs, rank) / 10,
        "hada_w1_b": torch.randn(rank, inputs),
        "hada_w2_a": torch.zeros(outputs, rank),
        "hada_w2_b": torch.randn(rank, inputs),
    }


def _lokr(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """Begin at 0; the second factor is a product itself where that is smaller."""
    (few_out, many_out), (few_in, many_in) = _factors(len(weight)), _factors(weight.shape[1])
    first, wide = torch.empty(few_out, few_in), many_in * weight[0, 0].numel()
    nn.init.kaiming_uniform_(first, a=math.sqrt(5))
    if rank >= max(many_out, many_in) / 2:
        return {"lokr_w1": first, "lokr_w2": torch.zeros(many_out, many_in, *weight.shape[2:])}
    a = torch.empty(many_out, rank)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": torch.zeros(rank, wide)}


def _factors(size: int) -> tuple[int, int]:
    """Return the two factors of a number that are nearest to each other, the smaller one first."""
    few = next(few for few in range(math.isqrt(size), 0, -1) if size % few == 0)
    return few, size // few


KINDS: dict[str, Callable[[Tensor, int], dict[str, Tensor]]] = {
    "lora": _lora,
    "dora": _dora,
    "loha": _loha,
    "lokr": _lokr,
}
"""(a weight, a rank) -> the parts of its change as they begin, by the names of `models.deltas`."""


@dataclass(frozen=True)
class LoRASettings:
    """Choose how large changes are, and of which layers; without [lora] in a recipe all weights are trained."""

    rank: NonNegativeInt = 0
    alpha: NonNegativeFloat = 0.0  # the change is scaled by alpha / rank; 0 takes the rank, so by 1
    kind: str = "lora"  # a key of KINDS
    layers: tuple[str, ...] = PROJECTIONS  # how their names end
    conv_rank: NonNegativeInt = (
        0  # of convolutions of 3 x 3 pixels; 0 takes the rank, alpha stands to it as to the rank
    )
    layout: str = "kohya"  # of the file, one of LAYOUTS

    def __post_init__(self) -> None:
        """Raise ReverieError for what no file can be."""
        choose("kind", self.kind, KINDS)
        choose("layout", self.layout, dict.fromkeys(LAYOUTS))
        if self.layout == "diffusers" and self.kind not in ("lora", "dora"):
            raise ReverieError(f"diffusers has no layout for kind = {self.kind!r} in [lora]; give layout = 'kohya'")


def settings_of(sections: dict[str, Any]) -> LoRASettings:
    """Read a recipe's [lora]; its rank is 0 where there is none. Raises ReverieError where it makes no LoRA."""
    settings = section(sections, "lora", LoRASettings)
    if "lora" in sections and not settings.rank:
        raise ReverieError("rank = 0 in [lora] makes no LoRA; give a rank such as 16, or leave [lora] out")
    return settings


class LearnedDelta(nn.Module):
    """Add a trainable change, which starts at 0, to the frozen weight of the layer at `path`."""

    def __init__(self, path: str, parts: dict[str, Tensor], alpha: float) -> None:
        super().__init__()
        self.path, self.alpha = path, torch.tensor(alpha)
        self.parts = nn.ParameterDict(parts)

    def forward(self, weight: Float[Tensor, "o i ..."]) -> Float[Tensor, "o i ..."]:
        """Return the merged weight."""
        delta = weight_delta({**self.parts, "alpha": self.alpha}, weight)
        assert delta is not None
        return weight + delta


def install(network: nn.Module, settings: LoRASettings) -> nn.ModuleDict:
    """Put trainable changes beside a frozen network's layers; return them by the layers' names, with underscores.

    Raises ReverieError as `pick_layers` does.
    """
    added = nn.ModuleDict()
    for name, module, rank in pick_layers(network, settings):
        parts, whole = KINDS[settings.kind](module.weight, rank), {"lokr_w1", "lokr_w2"}
        scale = 1.0 if whole <= parts.keys() or not settings.alpha else settings.alpha / settings.rank
        delta = LearnedDelta(name, parts, scale * rank)
        added[name.replace(".", "_")] = delta
        parametrize.register_parametrization(module, "weight", delta)
    return added


def pick_layers(network: nn.Module, settings: LoRASettings) -> list[tuple[str, nn.Linear | nn.Conv2d, int]]:
    """Return the layers that changes are put beside, by name, each with the rank of its change.

    Raises ReverieError where no layer's name ends in one of the settings', and for a rank that a layer has not.
    """
    found, endings = list[tuple[str, nn.Linear | nn.Conv2d, int]](), tuple(f".{end}" for end in settings.layers)
    for name, module in network.named_modules():
        if not (isinstance(module, nn.Linear | nn.Conv2d) and f".{name}".endswith(endings)):
            continue
        rank = (settings.conv_rank or settings.rank) if module.weight[0, 0].numel() > 1 else settings.rank
        if rank > (most := min(len(module.weight), module.weight[0].numel())):
            raise ReverieError(f"rank = {rank} in [lora] of the recipe is too much: a layer has {most}; give less")
        found.append((name, module, rank))
    if not found:
        raise ReverieError(f"no layer's name ends in {', '.join(settings.layers)}; choose other layers in [lora]")
    return found
