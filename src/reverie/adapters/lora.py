"""LoRAs and their kin as merged weights, which stand in for the model's own and are taken out again to the bit.

The merged weights live beside the model's own for as long as a context lasts. Strengths are given for the U-Net and
for the text encoders; several LoRAs add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.adapters.deltas import bias_delta, is_whole, weight_delta
from reverie.adapters.scales import Scales, read_scales
from reverie.checkpoints.adapter_keys import Target, canonical, group, targets
from reverie.checkpoints.weights import Source, open_source
from reverie.errors import ReverieError
from reverie.requests.adapter_files import PEFT_CONFIG, Adapter, weights_file
from reverie.system import StableDiffusion

NETWORKS = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}  # by the folders that peft's are kept in
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
        yield file, NETWORKS.get(path.name) if path.is_dir() else None
        return
    parts = [path / name for name in NETWORKS if (path / name / PEFT_CONFIG).is_file()]
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
