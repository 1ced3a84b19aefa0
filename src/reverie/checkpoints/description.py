"""Descriptions of files and folders of weights: kind, family, size and dtype, from names, shapes and configs alone."""

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
from reverie.checkpoints.configs import PATCHED, PLAIN, TINY, read_latent_factor
from reverie.checkpoints.families import alike
from reverie.checkpoints.identify import AUTOENCODER, Contents, identify
from reverie.checkpoints.load import SAFETY, STEMS, read_process, weight_files
from reverie.checkpoints.weights import GGUF, Source, find_weights, open_source, read_json
from reverie.errors import ReverieError
from reverie.models.k_unet import KUNetConfig
from reverie.requests.references import locate_model, locate_part

# Whose prompts a network attends to, told by their width.
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL", 1280: "the XL refiner"}
CLASSES = {  # of parts of a model in diffusers' layout: their kind and the stem of their weights
    PLAIN: ("vae", "an autoencoder (VAE) alone", STEMS["vae"]),
    PATCHED: ("vae", "a patched autoencoder (VAE) alone", STEMS["vae"]),
    TINY: ("taesd", "a TAESD (tiny autoencoder)", STEMS["vae"]),
    "ControlNetModel": ("controlnet", "a ControlNet", STEMS["unet"]),
    "T2IAdapter": ("t2i-adapter", "a T2I-Adapter", STEMS["unet"]),
    "UNet2DConditionModel": ("unet", "a U-Net in diffusers' layout", STEMS["unet"]),
    "StableDiffusionSafetyChecker": ("safety", "a safety checker", STEMS["text_encoder"]),
    "CLIPTextModel": ("text-encoder", "a text encoder", STEMS["text_encoder"]),
    "CLIPTextModelWithProjection": ("text-encoder", "a text encoder", STEMS["text_encoder"]),
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
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe(path: str | Path) -> Description:
    """Describe a model, a LoRA, an embedding, an autoencoder, a ControlNet, a CLIP or a TAESD: a file or a folder.

    A bundled model has a name. Raises ReverieError where it is nothing of the kind, or is damaged.
    """
    path = locate_model(path)
    if path.is_dir():
        return _describe_folder(path)
    if not path.is_file():
        raise ReverieError(f"no file or folder at '{path}'")
    source = open_source(path)
    contents = identify(source, path)
    if contents.kind == "unknown":
        contents.drawable(str(path))  # raises, as it says what the file holds
    described = _measure(path, contents.kind, contents.title, [source], [path])
    family = None if contents.doubtful else contents.family
    return replace(
        described,
        family=contents.family.name if contents.family else None,
        prediction=family.schedule.prediction if family else None,
        resolution=family.unet.sample_size * family.autoencoder.factor if family else None,
        missing=contents.missing,
        notes=_notes(contents, source),
    )


def _notes(contents: Contents, source: Source) -> tuple[str, ...]:
    notes = [contents.advice] if contents.advice else []
    if contents.doubtful:
        notes.append("whether it predicts eps (512 px) or v (768 px) shows when it is loaded")
    if contents.family and contents.family.schedule.zero_terminal_snr:
        notes.append("zero terminal SNR")
    if isinstance(source, GGUF):
        notes.append(f"GGUF in {', '.join(source.formats)}")
    return (*notes, *_details(contents.kind, source))


def _describe_folder(folder: Path) -> Description:
    if (folder / "model_index.json").is_file():
        return _describe_model(folder)
    raw = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if clip := _clip_files(folder, raw):
        size = (raw.get("vision_config") or {}).get("image_size")
        described = _measure(folder, "clip", "a CLIP", [open_source(file) for file in clip], clip)
        return replace(described, resolution=size if isinstance(size, int) else None)
    name = raw.get("_class_name") or next(iter(raw.get("architectures") or ()), None)
    if name not in CLASSES:
        raise ReverieError(f"'{folder}' holds no model_index.json and no part of a model that reverie knows")
    kind, title, stem = CLASSES[name]
    files = _weights(folder, stem)
    return _measure(folder, kind, title, [open_source(file) for file in files], files)


def _describe_model(folder: Path) -> Description:
    files = weight_files(folder, None)
    vae, (unet, process) = locate_part(folder, "vae/config.json"), read_process(folder)
    sees = locate_part(folder, "image_encoder").is_dir()
    found = [family for family in alike(unet, process) if (family.vision is not None) == sees]
    title = found[0].title if found else "a model of its own kind"
    if isinstance(unet, KUNetConfig):
        title = "Stable Diffusion 2 latent upscaler"
    described = _measure(folder, "model", f"{title}, in diffusers' layout", [open_source(one) for one in files], files)
    return replace(
        described,
        family=found[0].name if found else None,
        prediction=process.prediction,
        resolution=unet.sample_size * read_latent_factor(read_json(vae), str(vae)) if vae.parent.is_dir() else None,
        missing=() if vae.parent.is_dir() else (AUTOENCODER,),
        notes=("with a safety checker",) if (folder / SAFETY).is_dir() else (),
    )


def _clip_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Return the weights of a CLIP in transformers' or open_clip's layout; none where the folder is no such thing."""
    if config.get("model_type") == "clip" and "StableDiffusionSafetyChecker" not in (config.get("architectures") or ()):
        return _weights(folder, STEMS["text_encoder"])
    return [folder / name for name in OPEN_CLIP_FILES if (folder / name).is_file()][:1]


def _weights(folder: Path, stem: str) -> list[Path]:
    return find_weights(folder, stem, None) if folder.is_dir() else []


def _measure(path: Path, kind: str, title: str, sources: Iterable[Source], files: Iterable[Path]) -> Description:
    """Count; running averages are named, not counted."""
    by_dtype: Counter[torch.dtype] = Counter()
    tensors, averages = 0, False
    for source in sources:
        for name in source.names():
            if name.startswith("model_ema."):
                averages = True
                continue
            by_dtype[source.dtype(name)] += math.prod(source.shape(name))
            tensors += 1
    floats = {dtype: count for dtype, count in by_dtype.items() if dtype.is_floating_point and count}
    return Description(
        path=str(path),
        kind=kind,
        title=title,
        family=None,
        prediction=None,
        resolution=None,
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in sorted(floats, key=lambda dtype: -floats[dtype])),
        parameters=sum(floats.values()),
        tensors=tensors,
        size=sum(file.stat().st_size for file in files),
        averages=averages,
    )


def _details(kind: str, source: Source) -> tuple[str, ...]:
    """Tell of a LoRA its rank, of an embedding its vectors, and of both and of a ControlNet what they belong to."""
    if kind not in ("lora", "embedding", "controlnet"):
        return ()
    shapes = {name: source.shape(name) for name in source.names()}
    tables = [(1, *shape)[-2:] for shape in shapes.values() if shape]
    if kind == "embedding" and tables:
        widths = sorted({width for _, width in tables})
        base = "Stable Diffusion XL" if widths == [768, 1280] else BASES.get(widths[0])
        size = f"{tables[0][0]} vectors of width {' and '.join(map(str, widths))}"
        return (size, f"for {base}") if base else (size,)
    notes: list[str] = []
    if kind == "lora":
        trained = algorithms(shapes)
        notes += [", ".join(trained)] if trained != ["LoRA"] else []
        ranks = sorted({shapes[parts["down"]][0] for parts in group(shapes)[0].values() if "down" in parts})
        notes += [f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"] if ranks else []
    keys = [shape[1] for name, shape in shapes.items() if "attn2" in name and "to_k" in name and len(shape) > 1]
    base = next((BASES[width] for width in keys if width in BASES), None)
    return (*notes, f"for {base}") if base else tuple(notes)
