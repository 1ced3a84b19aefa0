"""How is a LoRA put into a model, and taken out again to the bit? As merged weights that stand in for the model's own.

The merged weights live beside the model's own for as long as a context lasts. Strengths are given for the U-Net and
for the text encoders; several LoRAs add up.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reverie.adapters.deltas import bias_delta, weight_delta
from reverie.adapters.lora_keys import Target, group, targets
from reverie.checkpoints.weights import Source, open_source
from reverie.errors import ReverieError
from reverie.system import StableDiffusion

FOLDERS = "REVERIE_LORA_DIR"  # the environment variable with the folders where prompts' LoRAs are looked for
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")

Adapter = tuple[Path, float, float]
"""A file, and its strengths for the U-Net and for the text encoders."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """Point to what one file has for one layer."""

    source: Source
    file: Path
    keys: Mapping[str, str]
    strength: float

    def parts(self, device: torch.device) -> dict[str, Tensor]:
        return {role: self.source.tensor(key).to(device, torch.float32) for role, key in self.keys.items()}


def parse(text: str) -> Adapter:
    """Read "FILE", "FILE:0.8" or "FILE:text:unet", as A1111's tag orders the strengths; 1 where none is given."""
    path, numbers = text, list[float]()
    while len(numbers) < 2 and ":" in path and (number := _number(path.rpartition(":")[2])) is not None:
        path = path.rpartition(":")[0]
        numbers.insert(0, number)
    if not path:
        raise ReverieError(f"LoRA {text!r} names no file; give FILE or FILE:STRENGTH")
    first, last = (numbers[0], numbers[-1]) if numbers else (1.0, 1.0)
    return Path(path), last, first


def _number(text: str) -> float | None:
    return float(text) if NUMBER.fullmatch(text) else None


def find(name: str, folders: Sequence[Path] = ()) -> Path:
    """Find the file of a LoRA by its name: in folders, then in those of REVERIE_LORA_DIR and all inside them.

    Raises ReverieError where there is none.
    """
    own = [Path(part) for part in os.environ.get(FOLDERS, "").split(os.pathsep) if part]
    beside = [file for folder in dict.fromkeys(folders) if folder.is_dir() for file in sorted(folder.iterdir())]
    files = [*beside, *(file for folder in own for file in sorted(folder.rglob("*")))]
    files = [file for file in files if file.suffix in SUFFIXES]
    for file in files:
        if name in (file.stem, file.name):
            return file
    near = difflib.get_close_matches(name, [file.stem for file in files], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    where = ", ".join(map(str, dict.fromkeys([*folders, *own])))
    missing = f"no LoRA '{name}' in {where}" if where else f"nowhere to look for the LoRA '{name}'"
    raise ReverieError(f"{missing}; {hint}set {FOLDERS} to the folder that holds it")


@contextmanager
def apply(system: StableDiffusion, adapters: Sequence[Adapter]) -> Iterator[None]:
    """Merge LoRAs into a model for as long as the context lasts; after it, the very same tensors are in place.

    Raises ReverieError, before anything is changed, for files that are missing or made for another family of models.
    """
    merged = _merge(_layers(system, adapters))
    originals = [(module, name, getattr(module, name)) for module, name, _ in merged]
    try:
        for module, name, tensor in merged:
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        del merged
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _layers(system: StableDiffusion, adapters: Sequence[Adapter]) -> dict[nn.Module, list[_Layer]]:
    """Look up every layer that the files name."""
    layers: dict[nn.Module, list[_Layer]] = {}
    known = targets(system) if adapters else {}
    for file, unet, text in adapters:
        if not file.is_file():
            raise ReverieError(f"no LoRA at '{file}': there is no such file")
        source = open_source(file)
        for target, keys in _matched(file, source, known):
            layers.setdefault(target.module, []).append(_Layer(source, file, keys, text if target.text else unet))
    return layers


def _matched(file: Path, source: Source, known: Mapping[str, Target]) -> Iterator[tuple[Target, Mapping[str, str]]]:
    """Yield the layers of a file; raise ReverieError where it has keys that name nothing in the model."""
    found, unknown = group(source.names())
    unknown += [key for name, keys in found.items() if name not in known for key in keys.values()]
    if not found or unknown:
        told = (
            f"{len(unknown)} of its keys name nothing in this model, such as '{unknown[0]}'"
            if unknown
            else "it is empty"
        )
        raise ReverieError(f"'{file}' is no LoRA for this model: {told}; give one that was made for this family")
    for name, keys in found.items():
        yield known[name], keys


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
            after = _added(*after, adapter.parts(original.device), adapter)
        for name, old, new in zip(("weight", "bias"), before, after, strict=True):
            if new is not None and new is not old:
                merged.append((module, name, new.to(original.dtype)))
    return merged


def _added(
    weight: Tensor, bias: Tensor | None, parts: dict[str, Tensor], adapter: _Layer
) -> tuple[Tensor, Tensor | None]:
    """Add one file's changes to a layer."""
    try:
        if (delta := weight_delta(parts, weight)) is not None:
            weight = weight + adapter.strength * delta
        if (change := bias_delta(parts)) is not None:
            bias = adapter.strength * change if bias is None else bias + adapter.strength * change
    except (RuntimeError, KeyError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{role} {tuple(part.shape)}" for role, part in parts.items() if part.ndim)
        key = next(iter(adapter.keys.values()))
        raise ReverieError(
            f"'{adapter.file}' does not fit this model: '{key}' with {shapes} is for another weight than "
            f"{tuple(weight.shape)}; give a LoRA that was made for this family"
        ) from error
    return weight, bias
