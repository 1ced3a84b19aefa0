"""Which files of a repository does a model need? Those that reverie reads, each in one format and one precision."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from reverie.checkpoints.load import DIFFUSERS_STEM, TRANSFORMERS_STEM

INDEX = "model_index.json"
WEIGHTS = {
    "unet": DIFFUSERS_STEM,
    "vae": DIFFUSERS_STEM,
    "text_encoder": TRANSFORMERS_STEM,
    "text_encoder_2": TRANSFORMERS_STEM,
}
# Of a tokenizer, either all of the first or all of the second; and what else there is.
VOCABULARIES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # the better ones first
HALF = "fp16"  # taken where there is nothing else, as reverie converts


def folder_files(names: Collection[str], index: Mapping[str, Any], variant: str | None) -> list[str]:
    """List the files of a model in diffusers' layout, whose model_index.json is given, among a repository's `names`.

    Safetensors go before pickles, and the variant before plain files. Raises LookupError, saying in one line what the
    repository lacks.
    """
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind and kind[0]]
    files = [INDEX]
    for part in parts:
        if part in WEIGHTS:
            files += [_one(names, f"{part}/config.json"), *_weights(names, part, WEIGHTS[part], variant)]
        elif part in ("tokenizer", "tokenizer_2"):
            files += _tokenizer(names, part)
        elif part == "scheduler":
            files.append(_one(names, f"{part}/scheduler_config.json"))
    if variant and not any(re.search(rf"\.{re.escape(variant)}[.-]", name) for name in files):
        raise LookupError(f"has no variant '{variant}'; {_variants(names)}")
    return files


def single_file(names: Collection[str], variant: str | None) -> str:
    """Choose the one checkpoint among a repository's `names`. Raises LookupError where there is none, or a choice."""
    paths = [PurePosixPath(name) for name in names if "/" not in name and name.endswith(SINGLE)]
    if variant:
        paths = [path for path in paths if variant in re.split(r"[.\-_]", path.stem)]
    stems = sorted({path.stem for path in paths})
    if not stems:
        raise LookupError(f"holds neither {INDEX} nor a checkpoint{f' of variant {variant}' if variant else ''}")
    best = {stem: min((path for path in paths if path.stem == stem), key=_preference).name for stem in stems}
    if len(best) > 1:
        raise LookupError(f"holds several checkpoints; add one to the name, after a slash: {', '.join(best.values())}")
    return best[stems[0]]


def _preference(path: PurePosixPath) -> int:
    return SINGLE.index(path.suffix)


def _one(names: Collection[str], name: str) -> str:
    if name not in names:
        raise LookupError(f"holds no {name}")
    return name


def _weights(names: Collection[str], part: str, stem: str, variant: str | None) -> list[str]:
    pickled = "pytorch_model" if stem == TRANSFORMERS_STEM else stem
    for precision in (variant, None) if variant else (None, HALF):
        middle = f".{precision}" if precision else ""
        for name, kind in ((stem, "safetensors"), (pickled, "bin")):
            if (whole := f"{part}/{name}{middle}.{kind}") in names:
                return [whole]
            if (index := f"{part}/{name}.{kind}.index{middle}.json") in names:
                return [index, *_shards(names, f"{part}/{name}", middle, kind)]
    raise LookupError(f"holds no weights for {part} in safetensors or torch's format")


def _shards(names: Collection[str], stem: str, middle: str, kind: str) -> list[str]:
    """List the shards of an index; their variant stands before their number or behind it."""
    number, dotted = r"-\d{5}-of-(\d{5})", re.escape(middle)
    pattern = re.compile(rf"{re.escape(stem)}(?:{dotted}{number}|{number}{dotted})\.{kind}")
    found = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    count = int(found[0][1] or found[0][2]) if found else 1
    if len(found) < count:
        raise LookupError(f"holds {len(found)} of {count} shards of {stem}{middle}.{kind}")
    return [match[0] for match in found]


def _tokenizer(names: Collection[str], part: str) -> list[str]:
    for vocabulary in VOCABULARIES:
        if all(f"{part}/{name}" in names for name in vocabulary):
            return [f"{part}/{name}" for name in (*vocabulary, *SETTINGS) if f"{part}/{name}" in names]
    raise LookupError(f"holds no vocabulary for {part}")


def _variants(names: Collection[str]) -> str:
    """Say which variants there are."""
    found = {match[1] for name in names if (match := re.search(r"/[a-z_]+model\.([a-z]\w*)(?:-[^/]*)?\.(?:s|b)", name))}
    found -= {"safetensors", "bin"}
    return f"choose from {', '.join(sorted(found))}, or leave it out" if found else "leave it out"
