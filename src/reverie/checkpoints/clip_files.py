"""CLIPs in any layout: the layout is told from the keys, the sizes from the shapes.

Layouts: transformers' folders and files; open_clip's (`open_clip_config.json` beside, or alone); OpenAI's own, whose
TorchScript archives are read as data, without their code. Source of names and rules: openai/CLIP `model.py`
(`build_model`), open_clip `model.py`, `factory.py` and `model_configs/`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reverie.checkpoints import compvis, hub
from reverie.checkpoints.compvis import Place, Table
from reverie.checkpoints.families import FilePart
from reverie.checkpoints.load import CPU, TRANSFORMERS_STEM, load_image_encoder
from reverie.checkpoints.load import load_clip as load_folder
from reverie.checkpoints.single import read_part
from reverie.checkpoints.weights import Source, blueprint, find_weights, open_source, read_json
from reverie.errors import ReverieError
from reverie.models.clip import (
    ACTIVATIONS,
    CLIP,
    MLP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    VisionTowerWithProjection,
)
from reverie.requests.references import locate_model
from reverie.tokenizer import Tokenizer

CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR = "config.json", "open_clip_config.json", "preprocessor_config.json"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PUBLISHED = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336": "openai/clip-vit-large-patch14-336",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "ViT-bigG/14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
# Heads are 64 wide, but for the vision towers of open_clip's H, g and bigG, which have 16.
HEAD_WIDTH = 64
VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}
WIDE_TEXTS = (1024, 1280)  # of H, g and bigG, which OpenAI did not train, so they have the exact GELU
VISION_TYPE, VISION_MARK = "clip_vision_model", "vision_model.pre_layrnorm.weight"
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}


@dataclass(frozen=True, eq=False)
class FoundClip:
    """Hold a CLIP, its tokenizer and its name, and the folder with its settings where it came from one."""

    clip: CLIP
    tokenizer: Tokenizer
    name: str
    folder: Path | None = None


@dataclass(frozen=True)
class CLIPLayout:
    """Describe how a file names a CLIP's tensors: by which table, with which prefixes before all and before texts'."""

    name: str
    modules: Callable[[CLIPConfig, CLIPLayout], Table]
    prefix: str = ""
    text_prefix: str = ""

    def ours(self, config: CLIPConfig) -> FilePart[CLIP]:
        """Describe the network in this layout."""
        closed = tuple(f"{self.prefix}{part}" for part in ("visual.", f"{self.text_prefix}transformer."))
        return FilePart(lambda: CLIP(config), self.modules(config, self), self.prefix, closed)


def load_clip(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    activation: str | None = None,
    revision: str | None = None,
) -> FoundClip:
    """Read a CLIP from a folder, a file, or by its name: one of PUBLISHED, or `owner/name` on the hub.

    Weights come onto `device` in `dtype`. `activation` ("gelu" or "quick_gelu") goes before what the files say or let
    suppose; `revision` is a branch, tag or commit on the hub. Raises ReverieError.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ReverieError(f"unknown activation {activation!r}; choose from {', '.join(sorted(ACTIVATIONS))}")
    place, name = _locate(path, revision)
    if place.is_dir() and not (place / OPEN_CLIP_CONFIG).is_file():
        return _from_transformers(place, name, device, dtype, activation)
    if place.is_dir():
        if _holds_transformers(place):
            return _from_transformers(place, name, device, dtype, activation)
        return load_clip_file(_open_clip_weights(place), name, device=device, dtype=dtype, activation=activation)
    return load_clip_file(place, name, device=device, dtype=dtype, activation=activation)


def load_clip_file(
    file: Path, name: str, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32, activation: str | None
) -> FoundClip:
    """Read a CLIP, called `name`, from one file in any of the layouts, onto `device` in `dtype`.

    Sizes come from shapes, `activation` from the file where it is None. Raises ReverieError.
    """
    source = open_source(file)
    layout = identify_clip(source, str(file))
    settings = _settings(file)
    config = config_of(source, layout, str(file), activation or _activation(source, layout, file, settings))
    tokenizer = _with_length(hub.find_tokenizer(file, config.text.vocab_size), config.text.max_position_embeddings)
    clip = read_part(layout.ours(config), source, str(file), device, dtype)
    return FoundClip(clip, tokenizer, name, file.parent if settings else None)


def load_vision(
    path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> VisionTowerWithProjection:
    """Read the vision tower of a CLIP from a folder, a file or a name: one saved alone, or that of a whole CLIP.

    Raises ReverieError.
    """
    place, _ = _locate(path, None)
    if place.is_dir() and (place / CONFIG).is_file() and read_json(place / CONFIG).get("model_type") == VISION_TYPE:
        return load_image_encoder(place, device=device, dtype=dtype)
    if place.is_file() and (part := _vision_part(open_source(place), str(place))) is not None:
        return read_part(part, open_source(place), str(place), device, dtype)
    clip = load_clip(place, device=device, dtype=dtype).clip
    tower = blueprint(lambda: VisionTowerWithProjection(clip.config.vision, clip.config.projection_dim))
    tower.vision_model, tower.visual_projection = clip.vision_model, clip.visual_projection
    return tower.eval()


def _vision_part(source: Source, where: str) -> FilePart[VisionTowerWithProjection] | None:
    """Describe a vision tower that is alone in a file, in transformers' layout; None for any other file."""
    names = set(source.names())
    if not {VISION_MARK, "visual_projection.weight"} <= names or "text_projection.weight" in names:
        return None
    layout = CLIPLayout("transformers", _transformers)
    shape = _shapes(source, layout, layout.modules(CLIPConfig(), layout), where)
    width, space = shape("vision_model.embeddings.class_embedding", 1)[0], shape("visual_projection.weight", 2)[0]
    activation = "gelu" if width in VISION_HEADS else "quick_gelu"
    config = _vision_config(shape, _count(names, layout, {}, "vision_model.encoder.layers"), activation)
    table = {part: Place(part) for part in ("vision_model", "visual_projection")}
    return FilePart(lambda: VisionTowerWithProjection(config, space), table, "", tuple(f"{part}." for part in table))


def identify_clip(source: Source, where: str) -> CLIPLayout:
    """Tell the layout of a file from its keys. Raises ReverieError, saying what it is, where it holds no such CLIP."""
    names = set(source.names())
    for prefix in ("", "module.", "model."):
        if f"{prefix}visual.layer1.0.conv1.weight" in names:
            raise ReverieError(f"{where} is a CLIP with a residual network (RN50 and the like); reverie reads ViT's")
        for text in ("", "text."):
            marks = {"visual.class_embedding", "visual.ln_pre.weight", f"{text}token_embedding.weight"}
            if {f"{prefix}{mark}" for mark in marks} <= names:
                return CLIPLayout("open_clip", _open_clip, prefix, text)
        if {f"{prefix}{mark}" for mark in (VISION_MARK, "text_projection.weight")} <= names:
            return CLIPLayout("transformers", _transformers, prefix)
    if {"vision_model.head.probe", "logit_bias"} & names or any(name.startswith("visual.trunk.") for name in names):
        raise ReverieError(
            f"{where} is a relative of CLIP (SigLIP, or with a tower of timm's) that reverie does not read"
        )
    raise ReverieError(f"{where} holds no CLIP with both towers; give one of transformers', open_clip's or OpenAI's")


def config_of(source: Source, layout: CLIPLayout, where: str, activation: str) -> CLIPConfig:
    """Read all sizes from the shapes of a file's tensors, as OpenAI's `build_model` does. Raises ReverieError."""
    names, modules = set(source.names()), layout.modules(CLIPConfig(), layout)
    shape = _shapes(source, layout, modules, where)
    vocab, text_width = shape("text_model.embeddings.token_embedding.weight", 2)
    return CLIPConfig(
        text=CLIPTextConfig(
            hidden_size=text_width,
            intermediate_size=shape("text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
            num_hidden_layers=_count(names, layout, modules, "text_model.encoder.layers"),
            num_attention_heads=max(1, text_width // HEAD_WIDTH),
            hidden_act=activation,
            vocab_size=vocab,
            max_position_embeddings=shape("text_model.embeddings.position_embedding.weight", 2)[0],
            eos_token_id=vocab - 1,
            projection_dim=shape("text_projection.weight", 2)[0],
        ),
        vision=_vision_config(shape, _count(names, layout, modules, "vision_model.encoder.layers"), activation),
        projection_dim=shape("visual_projection.weight", 2)[0],
    )


Shapes = Callable[[str, int], tuple[int, ...]]
"""(our name of a tensor, how many axes it has) -> its shape."""


def _shapes(source: Source, layout: CLIPLayout, modules: Table, where: str) -> Shapes:
    """Return what reads the shapes of a file's tensors; it raises ReverieError for what is missing."""
    names = set(source.names())

    def shape(ours: str, axes: int) -> tuple[int, ...]:
        module = max((one for one in modules if ours == one or ours.startswith(f"{one}.")), key=len)
        theirs = f"{layout.prefix}{modules[module].name}{ours.removeprefix(module)}"
        if theirs not in names or len(source.shape(theirs)) != axes:
            raise ReverieError(f"{where} is no whole CLIP: '{theirs}' is missing, or has not {axes} axes")
        return modules[module].form.shape(source.shape(theirs))

    return shape


def _vision_config(shape: Shapes, layers: int, activation: str) -> CLIPVisionConfig:
    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight", 4)
    grid = math.isqrt(shape("vision_model.embeddings.position_embedding.weight", 2)[0] - 1)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=layers,
        num_attention_heads=VISION_HEADS.get(width, max(1, width // HEAD_WIDTH)),
        hidden_act=activation,
        image_size=grid * patch,
        patch_size=patch,
    )


def _open_clip(config: CLIPConfig, layout: CLIPLayout) -> Table:
    texts = compvis.open_clip(config.text)
    prefixed = {ours: Place(f"{layout.text_prefix}{p.name}", p.third, p.form) for ours, p in texts.items()}
    return {"logit_scale": Place("logit_scale"), **prefixed, **compvis.open_clip_vision(config.vision)}


def _transformers(config: CLIPConfig, layout: CLIPLayout) -> Table:
    parts = ("logit_scale", "text_model", "vision_model", "visual_projection", "text_projection")
    return {part: Place(part) for part in parts}


def _count(names: set[str], layout: CLIPLayout, modules: Table, ours: str) -> int:
    """Count a tower's layers, which are numbered."""
    first = modules.get(f"{ours}.0.layer_norm1")
    stem = first.name.removesuffix(".0.ln_1") if first else ours
    pattern = re.compile(rf"{re.escape(layout.prefix + stem)}\.(\d+)\.")
    return len({match[1] for name in names if (match := pattern.match(name))})


def _activation(source: Source, layout: CLIPLayout, file: Path, settings: Mapping[str, Any]) -> str:
    """Say which GELU a file was trained with, as no tensor tells: by its config, by OpenAI's marks, or by its name.

    OpenAI's files hold their sizes as tensors, or at least matrices in half and norms in full precision. Where nothing
    tells, a file in transformers' layout is taken for OpenAI's, one in open_clip's layout is not.
    """
    if settings:
        return "quick_gelu" if (settings.get("model_cfg") or {}).get("quick_gelu") else "gelu"
    names = set(source.names())
    wide = source.shape(_final_norm(layout)) in [(width,) for width in WIDE_TEXTS]
    if layout.name == "transformers":
        return "gelu" if wide else "quick_gelu"
    halves = source.dtype(f"{layout.prefix}visual.conv1.weight") == torch.float16
    mixed = halves and source.dtype(_final_norm(layout)) == torch.float32
    named = "quickgelu" in file.name.lower()
    return "quick_gelu" if names >= OPENAI_MARKS or mixed or named else "gelu"


def _final_norm(layout: CLIPLayout) -> str:
    norm = f"{layout.text_prefix}ln_final" if layout.name == "open_clip" else "text_model.final_layer_norm"
    return f"{layout.prefix}{norm}.weight"


def _settings(file: Path) -> dict[str, Any]:
    """Read open_clip_config.json beside one of open_clip's own files; a file of another name is not of it."""
    config = file.parent / OPEN_CLIP_CONFIG
    return read_json(config) if file.name in OPEN_CLIP_FILES and config.is_file() else {}


def _with_length(found: Tokenizer, length: int) -> Tokenizer:
    """Give a tokenizer the tower's number of positions."""
    return Tokenizer(found.vocab, found.merges, length=length, bos=found.bos, eos=found.eos, pad=found.pad)


def _from_transformers(
    folder: Path, name: str, device: torch.device, dtype: torch.dtype, activation: str | None
) -> FoundClip:
    if (folder / "model_index.json").is_file():
        raise ReverieError(f"'{folder}' holds a model that draws, whose text encoder sees no pictures; give a CLIP")
    if not (folder / CONFIG).is_file():
        raise ReverieError(f"no CLIP in '{folder}': it holds no config.json and no open_clip_config.json")
    if (kind := read_json(folder / CONFIG).get("model_type", "clip")) != "clip":
        raise ReverieError(f"{folder / CONFIG} describes a model of the type {kind!r}; reverie reads 'clip'")
    found = load_folder(folder, device=device, dtype=dtype)
    if activation is not None:
        _activate(found.clip, activation)
    return FoundClip(found.clip, found.tokenizer, name, folder)


def _activate(clip: CLIP, activation: str) -> None:
    """Give both towers another activation than their config's."""
    config = clip.config
    text, vision = replace(config.text, hidden_act=activation), replace(config.vision, hidden_act=activation)
    clip.config = replace(config, text=text, vision=vision)
    for module in clip.modules():
        if isinstance(module, MLP):
            module.activation = ACTIVATIONS[activation]


def _holds_transformers(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file() and bool(find_weights(folder, TRANSFORMERS_STEM, None))
    except ReverieError:
        return False


def _open_clip_weights(folder: Path) -> Path:
    for name in OPEN_CLIP_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ReverieError(f"no weights in '{folder}'; it should hold {OPEN_CLIP_FILES[0]}")


def _locate(path: str | Path, revision: str | None) -> tuple[Path, str]:
    """Find a CLIP's file or folder, fetching it where it is a name; say what it is called."""
    place = locate_model(path)
    if place.is_file() and (place.parent / CONFIG).is_file() and place.name in WEIGHTS:
        return place.parent, place.resolve().parent.name
    if place.exists():
        return place, place.resolve().stem if place.is_file() else place.resolve().name
    name = PUBLISHED.get(str(path), str(path))
    if not hub.is_name(name) or name.count("/") != 1 or name.endswith(tuple(WEIGHTS)):  # never a file of a repository
        known = ", ".join(PUBLISHED)
        raise ReverieError(f"no CLIP at '{path}'; give a folder, a file, a name on the hub, or one of {known}")
    return _fetch(name, revision), str(path)


def _fetch(name: str, revision: str | None) -> Path:
    """Fetch what makes a CLIP in transformers' layout; old repositories hold pickles alone."""
    common = (CONFIG, PREPROCESSOR, *TOKENIZER_FILES)
    folder = hub.fetch(name, common, revision=revision)
    if any((folder / weights).is_file() for weights in WEIGHTS):
        return folder
    try:
        return hub.fetch(name, [*common, WEIGHTS[0]], revision=revision)
    except ReverieError:
        return hub.fetch(name, [*common, WEIGHTS[1]], revision=revision)
