"""What multiplies an adapter's change, where the tensors beside it do not say: headers of diffusers, configs of peft.

diffusers 0.42 writes rank and alpha into a safetensors header alone (`lora_adapter_metadata`, by network); peft writes
them beside the tensors (`adapter_config.json`); LyCORIS tells of rank-stabilised scales in sd-scripts' header.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reverie.checkpoints.adapter_keys import Target
from reverie.checkpoints.weights import Source, read_json
from reverie.errors import ReverieError
from reverie.requests.adapter_files import PEFT_CONFIG

HEADER = "lora_adapter_metadata"
NETWORKS = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}  # of the header's keys
PEFT_TYPES = ("LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT")
# Ways to start that also change the model's weights, which are not in the file.
RESIDUAL = ("pissa", "olora", "corda")
COMFYUI = ("diffusion_model.", "text_encoders.")

Scales = Callable[[Target, str, dict[str, Tensor]], dict[str, Tensor]]
"""(a layer, its name in the file, its parts) -> the parts with what multiplies them."""


def read_scales(file: Path, source: Source) -> Scales:
    """Read what a file, its header or the config beside it says of scales.

    Raises ReverieError where it says what cannot be honoured.
    """
    header: Mapping[str, str] = getattr(source, "metadata", {})
    config = file.parent / PEFT_CONFIG
    if config.is_file() and file.name.startswith("adapter_model."):
        configs = dict.fromkeys(NETWORKS, _check_config(read_json(config), config))
    else:
        configs = _by_network(header.get(HEADER, "{}"), file)
    if any(configs.values()):
        return lambda target, name, parts: _peft(configs[target.network], target, parts, config)
    return _lycoris(source, header)


def _by_network(text: str, file: Path) -> dict[str, dict[str, Any]]:
    try:
        header = json.loads(text)
        return {
            network: {key.removeprefix(prefix): value for key, value in header.items() if key.startswith(prefix)}
            for network, prefix in NETWORKS.items()
        }
    except (ValueError, AttributeError) as error:
        raise ReverieError(f"'{file}' is damaged: its {HEADER}, which says how strong it is, is no table") from error


def _check_config(config: dict[str, Any], file: Path) -> dict[str, Any]:
    kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights")
    if kind not in PEFT_TYPES:
        raise ReverieError(
            f"{file}: peft_type is {kind!r}, which is not supported; it should be {', '.join(PEFT_TYPES)}"
        )
    if isinstance(start, str) and start.startswith(RESIDUAL):
        raise ReverieError(
            f"{file}: init_lora_weights is {start!r}, which changes the model's own weights too; convert the adapter "
            "to a plain LoRA with peft"
        )
    return config


def _peft(config: Mapping[str, Any], target: Target, parts: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Add what a config of peft's says: alpha / rank, or alpha / sqrt(rank), of the layer or of all."""
    settings: dict[str, float] = {}
    try:
        rank = _of_layer(config.get("rank_pattern"), target.path, config.get("r"))
        alpha = _of_layer(config.get("alpha_pattern"), target.path, config.get("lora_alpha", config.get("alpha")))
        if rank and alpha is not None and "alpha" not in parts:
            settings["scale"] = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))
        if "oft_R" in parts:
            settings["neumann"] = config.get("use_cayley_neumann", True) and int(
                config.get("num_cayley_neumann_terms", 5)
            )
        if "ia3_l" in parts and "feedforward_modules" in config:
            feedforward = config["feedforward_modules"] or []
            names = [feedforward] if isinstance(feedforward, str) else feedforward
            settings["on_input"] = any(_matches(name, target.path) for name in names)
    except (TypeError, ValueError, re.error) as error:
        raise ReverieError(
            f"{where.name} says wrongly how strong the adapter of '{target.path}' is: {error}"
        ) from error
    return parts | {name: torch.tensor(float(value)) for name, value in settings.items()}


def _of_layer(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return what the first pattern that matches says, as peft's `get_pattern_key`."""
    return next((value for pattern, value in (patterns or {}).items() if _matches(pattern, path)), default)


def _matches(pattern: str, path: str) -> bool:
    if re.search(r"\)[*+{]", pattern) or len(pattern) > 500:  # could take forever
        raise ValueError(f"the pattern {pattern[:80]!r} is not one that reverie runs")
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lycoris(source: Source, header: Mapping[str, str]) -> Scales:
    """Take account of LyCORIS' rank-stabilised scales, and of ComfyUI's bound on rotations.

    All but GLoRA's alpha hold them already. That of a LoKr of two whole factors is its dimension d, or d sqrt(d) where
    it trained at sqrt(d); d is the header's, or the rank of other layers of the file.
    """
    arguments = _arguments(header.get("ss_network_args", ""))
    stable = str(arguments.get("rs_lora")).lower() == "true"
    named = (header.get("ss_network_dim"), arguments.get("conv_dim"))
    dims = {source.shape(key)[0] for key in source.names() if key.endswith((".lokr_w1_b", ".lokr_w2_b"))}
    dims |= {int(str(dim)) for dim in named if str(dim).isdecimal()}

    def scale(target: Target, name: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        alpha = parts["alpha"].item() if "alpha" in parts else 0.0
        if {"lokr_w1", "lokr_w2"} <= parts.keys() and alpha:
            near = min(dims, key=lambda dim: abs(alpha - dim**1.5), default=0)
            if near and abs(alpha - near**1.5) <= alpha / 100 and (stable or alpha not in dims):
                return parts | {"scale": torch.tensor(math.sqrt(near))}
        if "a1" in parts and stable:
            return parts | {"alpha": parts["alpha"] * math.sqrt(min(parts["a1"].shape[:2]))}
        if "oft_blocks" in parts and name.startswith(COMFYUI):  # which bounds the norm by alpha itself
            return parts | {"alpha": parts["alpha"] / math.prod(parts["oft_blocks"].shape[-3:-1])} if alpha else parts
        return parts

    return scale
