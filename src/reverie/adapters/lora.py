"""LoRAs and their kin as merged weights, which stand in for the model's own and are taken out again to the bit.

The merged weights live beside the model's own for as long as a context lasts. Strengths are given for the U-Net and
for the text encoders; several LoRAs add up. What multiplies a change stands beside its tensors, or elsewhere: diffusers
0.42 writes rank and alpha into a safetensors header alone (`lora_adapter_metadata`, by network), peft beside the file
(`adapter_config.json`); LyCORIS tells of rank-stabilised scales in sd-scripts' header.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.checkpoints.adapter_keys import Target, canonical, group, targets
from reverie.checkpoints.weights import Source, open_source, read_json
from reverie.errors import ReverieError
from reverie.models.deltas import bias_delta, is_whole, weight_delta
from reverie.requests.adapter_files import PEFT_CONFIG, Adapter, weights_file
from reverie.system import StableDiffusion

HEADER = "lora_adapter_metadata"
HEADER_PREFIXES = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}  # of the header's keys
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
        configs = dict.fromkeys(HEADER_PREFIXES, _check_config(read_json(config), config))
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
            for network, prefix in HEADER_PREFIXES.items()
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


PEFT_FOLDERS = {
    "unet": "unet",
    "text_encoder": "te1",
    "text_encoder_2": "te2",
}  # by the folders that peft's are kept in
LATENT_CHANNELS, INPAINTING_CHANNELS = 4, 9

Layers = dict[nn.Module, "list[_Layer]"]


@dataclass(frozen=True, eq=False)
class _Layer:
    """Point to what one file has for one layer."""

    source: Source
    file: Path
    keys: Mapping[str, str]
    strength: float
    scaled: Callable[[dict[str, Tensor]], dict[str, Tensor]]

    def parts(self, weight: Tensor) -> dict[str, Tensor]:
        parts = {role: self.source.tensor(key).to(weight.device, torch.float32) for role, key in self.keys.items()}
        if weight.ndim == 4 and weight.shape[1] == INPAINTING_CHANNELS:  # learned before the mask's channels came
            for role in {"down", "diff"} & parts.keys():
                if parts[role].shape[1] == LATENT_CHANNELS:
                    parts[role] = F.pad(parts[role], (0, 0, 0, 0, 0, INPAINTING_CHANNELS - LATENT_CHANNELS))
        return self.scaled(parts)


@contextmanager
def apply(system: StableDiffusion, adapters: Sequence[Adapter]) -> Iterator[None]:
    """Merge LoRAs into a model for as long as the context lasts; after it, the very same tensors are in place.

    What names nothing in the model is left out, see `notes`. Raises ReverieError, before anything is changed, for files
    that are missing or made for another family of models.
    """
    merged = _merge(_layers(system, adapters)[0])
    originals = [(module, name, getattr(module, name)) for module, name, _ in merged]
    try:
        for module, name, tensor in merged:
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        del merged
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def notes(system: StableDiffusion, adapters: Sequence[Adapter]) -> list[str]:
    """Say what of LoRAs `apply` leaves out. Raises ReverieError as it does, but for shapes that do not fit."""
    return _layers(system, adapters)[1]


def _layers(system: StableDiffusion, adapters: Sequence[Adapter]) -> tuple[Layers, list[str]]:
    """Look up every layer that the files name; say what is left out."""
    layers: Layers = {}
    notes: list[str] = []
    known = targets(system.unet, system.text_encoders) if adapters else {}
    for path, unet, text in adapters:
        for file, network in _files(path):
            source = open_source(file)
            scales = read_scales(file, source)
            for target, name, keys in _match_layers(file, source, known, network, notes):
                strength = unet if target.network == "unet" else text
                layer = _Layer(source, file, keys, strength, _scaling(scales, target, name))
                layers.setdefault(target.module, []).append(layer)
    return layers, notes


def _scaling(scales: Scales, target: Target, name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda parts: scales(target, name, parts)


def _files(path: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files of tensors of a LoRA, with the network that each is for where its folder's name says it."""
    file = weights_file(path)
    if file.is_file():
        yield file, PEFT_FOLDERS.get(path.name) if path.is_dir() else None
        return
    parts = [path / name for name in PEFT_FOLDERS if (path / name / PEFT_CONFIG).is_file()]
    if not parts:
        what = f"it holds no {PEFT_CONFIG}" if path.is_dir() else "there is no such file"
        raise ReverieError(f"no LoRA at '{path}': {what}")
    for part in parts:
        yield from _files(part)


def _match_layers(
    file: Path, source: Source, known: Mapping[str, Target], network: str | None, notes: list[str]
) -> Iterator[tuple[Target, str, Mapping[str, str]]]:
    """Yield the layers of a file once each, with the name that it gives them and their keys.

    Raises ReverieError where it has none of this model's, or none of its U-Net's though more than others.
    """
    found, unknown = group(source.names())
    taken: dict[nn.Module, tuple[Target, str, dict[str, str]]] = {}
    strangers, twice = 0, 0
    for name, keys in found.items():
        path = canonical(name)
        target = known.get(path if network is None else f"{network} {path.partition(' ')[2]}")
        if target is None or not is_whole(keys):
            unknown += keys.values()
            strangers += target is None and path.startswith("unet ")
        elif target.module not in taken:
            taken[target.module] = (target, name, keys)
        elif taken[target.module][2].keys() & keys.keys():
            twice += 1
        else:
            taken[target.module][2].update(keys)
    foreign = strangers > len(taken) and all(target.network != "unet" for target, _, _ in taken.values())
    if not taken or foreign:
        lost = f"{len(unknown)} of its keys name nothing in this model or lack their other half: {_some(unknown)}"
        what = lost if unknown else "it is empty"
        raise ReverieError(f"'{file}' is no LoRA for this model: {what}; give one that was made for this family")
    if unknown:
        notes.append(
            f"'{file.name}': {len(unknown)} tensors are left out, as they name nothing in this model or lack their "
            f"other half: {_some(unknown)}"
        )
    if twice:
        notes.append(f"'{file.name}' names {twice} layers in two ways; each is changed once")
    yield from taken.values()


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


@torch.no_grad()
def _merge(layers: Mapping[nn.Module, Sequence[_Layer]]) -> list[tuple[nn.Module, str, Tensor]]:
    """Compute the merged weights and biases, in float32 and rounded once."""
    merged = []
    for module, adapters in layers.items():
        original: Tensor = module.get_parameter("weight")
        bias: Tensor | None = getattr(module, "bias", None)
        before = (original.float(), None if bias is None else bias.float())
        after = before
        for adapter in adapters:
            after = _add_changes(*after, adapter)
        for name, old, new in zip(("weight", "bias"), before, after, strict=True):
            if new is not None and new is not old:
                merged.append((module, name, new.to(original.dtype)))
    return merged


def _add_changes(weight: Tensor, bias: Tensor | None, adapter: _Layer) -> tuple[Tensor, Tensor | None]:
    """Add one file's changes to a layer."""
    parts = adapter.parts(weight)
    try:
        delta, change = weight_delta(parts, weight, adapter.strength), bias_delta(parts, bias)
        if delta is not None:
            weight = weight + delta
        if change is not None:
            bias = adapter.strength * change if bias is None else bias + adapter.strength * change
    except (RuntimeError, KeyError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{role} {tuple(part.shape)}" for role, part in parts.items() if part.ndim)
        key = next(iter(adapter.keys.values()))
        raise ReverieError(
            f"'{adapter.file}' does not fit this model: '{key}' with {shapes} is for another weight than "
            f"{tuple(weight.shape)}; give a LoRA that was made for this family"
        ) from error
    return weight, bias
