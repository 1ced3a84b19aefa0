"""What is in a file or folder of weights? Family, size and dtype, read from names, shapes and configs alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reverie.checkpoints.adapter_keys import algorithms, group
from reverie.checkpoints.clip_files import OPEN_CLIP_FILES
from reverie.checkpoints.configs import read_schedule, read_unet
from reverie.checkpoints.families import Family, alike, identify, is_doubtful
from reverie.checkpoints.kinds import kind_of
from reverie.checkpoints.load import DIFFUSERS_STEM, TRANSFORMERS_STEM
from reverie.checkpoints.weights import Source, find_weights, open_source, read_json
from reverie.errors import ReverieError

PIXELS_PER_LATENT = 8
PARTS = {
    "unet": DIFFUSERS_STEM,
    "vae": DIFFUSERS_STEM,
    "text_encoder": TRANSFORMERS_STEM,
    "text_encoder_2": TRANSFORMERS_STEM,
}
# Whose prompts a network attends to, told by their width.
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL", 1280: "the XL refiner"}
CLASSES = {
    "AutoencoderKL": ("vae", "an autoencoder (VAE) alone"),
    "AutoencoderTiny": ("taesd", "a TAESD (tiny autoencoder)"),
    "ControlNetModel": ("controlnet", "a ControlNet"),
    "UNet2DConditionModel": ("unet", "a U-Net in diffusers' layout"),
}


@dataclass(frozen=True)
class Description:
    """Tell what a file or folder holds; what does not apply is None. `resolution` is in pixels, `size` in bytes."""

    path: str
    kind: str
    title: str
    family: str | None
    prediction: str | None
    resolution: int | None
    dtypes: tuple[str, ...]
    parameters: int
    tensors: int
    size: int
    averages: bool
    notes: tuple[str, ...] = ()


def describe(path: str | Path) -> Description:
    """Describe a model, a LoRA, an embedding, an autoencoder, a ControlNet or a TAESD, a file or a folder.

    Raises ReverieError where it is nothing of the kind, or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _describe_folder(path)
    if not path.is_file():
        raise ReverieError(f"no file or folder at '{path}'")
    source = open_source(path)
    kind = kind_of(source)
    if kind is not None:
        return _measured(path, kind.name, kind.title, [source], [path], notes=_details(kind.name, source))
    family = identify(source, str(path))
    doubt = ("whether it predicts eps (512 px) or v (768 px) shows when it is loaded",) if is_doubtful(family) else ()
    return _measured(path, "model", family.title, [source], [path], family, doubt)


def _describe_folder(folder: Path) -> Description:
    if (folder / "model_index.json").is_file():
        files = [file for part, stem in PARTS.items() for file in _weights(folder / part, stem)]
        config = folder / "unet/config.json"
        schedule = folder / "scheduler/scheduler_config.json"
        unet, told = read_unet(read_json(config), str(config)), read_schedule(read_json(schedule), str(schedule))
        found = alike(unet, told)
        title = found[0].title if found else "a model of its own kind"
        sources = [open_source(file) for file in files]
        described = _measured(folder, "model", f"{title}, in diffusers' layout", sources, files)
        resolution = unet.sample_size * PIXELS_PER_LATENT
        name = found[0].name if found else None
        return replace(described, family=name, prediction=told.prediction, resolution=resolution)
    raw = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if clip := _clip_files(folder, raw):
        size = (raw.get("vision_config") or {}).get("image_size")
        described = _measured(folder, "clip", "a CLIP", [open_source(file) for file in clip], clip)
        return replace(described, resolution=size if isinstance(size, int) else None)
    if raw.get("_class_name") not in CLASSES:
        raise ReverieError(f"'{folder}' holds no model_index.json and no part of a model that reverie knows")
    kind, title = CLASSES[raw["_class_name"]]
    files = _weights(folder, DIFFUSERS_STEM)
    return _measured(folder, kind, title, [open_source(file) for file in files], files)


def _clip_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Return the weights of a CLIP in transformers' or open_clip's layout; none where the folder is no such thing."""
    if config.get("model_type") == "clip":
        return _weights(folder, TRANSFORMERS_STEM)
    return [folder / name for name in OPEN_CLIP_FILES if (folder / name).is_file()][:1]


def _weights(folder: Path, stem: str) -> list[Path]:
    return find_weights(folder, stem, None) if folder.is_dir() else []


def _measured(
    path: Path,
    kind: str,
    title: str,
    sources: Iterable[Source],
    files: Iterable[Path],
    family: Family | None = None,
    notes: tuple[str, ...] = (),
) -> Description:
    """Count; running averages are told of, not counted."""
    by_dtype: Counter[torch.dtype] = Counter()
    tensors, averages = 0, False
    for source in sources:
        for name in source.names():
            if name.startswith("model_ema."):
                averages = True
                continue
            by_dtype[source.dtype(name)] += math.prod(source.shape(name))
            tensors += 1
    floats = {dtype: count for dtype, count in by_dtype.items() if dtype.is_floating_point}
    return Description(
        path=str(path),
        kind=kind,
        title=title,
        family=family.name if family else None,
        prediction=family.schedule.prediction if family and not is_doubtful(family) else None,
        resolution=family.unet.sample_size * PIXELS_PER_LATENT if family and not is_doubtful(family) else None,
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in sorted(floats, key=lambda dtype: -floats[dtype])),
        parameters=sum(floats.values()),
        tensors=tensors,
        size=sum(file.stat().st_size for file in files),
        averages=averages,
        notes=notes,
    )


def _details(kind: str, source: Source) -> tuple[str, ...]:
    """Tell of a LoRA its rank, of an embedding its vectors, and of both and of a ControlNet what they belong to."""
    shapes = {name: source.shape(name) for name in source.names()}
    notes: list[str] = []
    tables = [(1, *shape)[-2:] for shape in shapes.values() if shape]
    if kind == "embedding" and tables:
        widths = sorted({width for _, width in tables})
        base = "Stable Diffusion XL" if widths == [768, 1280] else BASES.get(widths[0])
        notes.append(f"{tables[0][0]} vectors of width {' and '.join(map(str, widths))}")
        return (*notes, f"for {base}") if base else tuple(notes)
    if kind == "lora":
        layers, _ = group(shapes)
        trained = algorithms(shapes)
        notes += [", ".join(trained)] if trained != ["LoRA"] else []
        ranks = sorted({shapes[parts["down"]][0] for parts in layers.values() if "down" in parts})
        notes += [f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"] if ranks else []
    keys = [shape[1] for name, shape in shapes.items() if "attn2" in name and "to_k" in name and len(shape) > 1]
    base = next((BASES[width] for width in keys if width in BASES), None)
    return (*notes, f"for {base}") if base else tuple(notes)
