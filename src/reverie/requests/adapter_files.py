"""Files of LoRAs and textual inversions: how a request and its prompts name them, where they are, what their sums are.

The tags are those of AUTOMATIC1111/stable-diffusion-webui 1.10: modules/extra_networks.py takes every `<word:...>` out
of a prompt, extensions-builtin/Lora/networks.py finds a LoRA by its file's name or its header's `ss_output_name`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from reverie.errors import ReverieError
from reverie.files import file_sha256, sha256_of

FOLDERS = "REVERIE_LORA_DIR"  # the environment variable with the folders where files are looked for by name
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
PEFT_CONFIG = "adapter_config.json"
# What a folder of peft's or of diffusers' holds its tensors in.
FOLDER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors")
LONGEST_HEADER = 10 << 20

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_LORA = ("lora", "lyco")

Adapter = tuple[Path, float, float]
"""A file or a folder of peft's, and its strengths for the U-Net and for the text encoders."""


class LoraTag(NamedTuple):
    """Name a LoRA with its weights for the text encoders and the U-Net: `<lora:name:text:unet>`."""

    name: str
    text: float
    unet: float


class Extracted(NamedTuple):
    """Hold a prompt without its tags, the LoRAs that they name, and what is said of those that are not honoured."""

    text: str
    loras: tuple[LoraTag, ...]
    notes: tuple[str, ...] = ()


def extract(prompt: str) -> Extracted:
    """Take every `<word:...>` out of a prompt, as A1111 does. Raises ReverieError for a LoRA of no name or number."""
    tags, notes = list[LoraTag](), list[str]()

    def take(match: re.Match[str]) -> str:
        if match[1] not in _LORA:
            notes.append(f"'{match[0]}' in the prompt is left out: reverie honours the tags of LoRAs alone")
            return ""
        tag, ignored = _tag(match[0], *match[2].split(":"))
        tags.append(tag)
        notes.extend(f"'{part}' in '{match[0]}' is left out; a LoRA takes a weight or two" for part in ignored)
        return ""

    return Extracted(_TAG.sub(take, prompt), tuple(tags), tuple(notes))


def _tag(whole: str, name: str, *arguments: str) -> tuple[LoraTag, list[str]]:
    """Read `text:unet`, either of which may be named: `te=0.5`, `unet=1`. One number stands for both."""
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    plain = [argument for argument in arguments if "=" not in argument]
    ignored = [f"{key}={value}" for key, value in named.items() if key not in ("te", "unet")] + plain[2:]
    try:
        first = float(plain[0]) if plain else 1.0
        text = float(named.get("te", first))
        tag = LoraTag(name.strip(), text, float(named.get("unet", plain[1] if len(plain) > 1 else text)))
    except ValueError:
        raise ReverieError(f"'{whole}' in the prompt has no number for a weight; write <lora:NAME:0.8>") from None
    if not tag.name:
        raise ReverieError(f"'{whole}' in the prompt names no LoRA; write <lora:NAME:0.8>")
    return tag, ignored


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
    return float(text) if _NUMBER.fullmatch(text) else None


def find(name: str, folders: Sequence[Path] = ()) -> Path:
    """Find a LoRA or an inversion by its name: in folders, then in those of REVERIE_LORA_DIR and all inside them.

    A name is a file's, with or without suffix and with or without the folders that lead to it, or the one that its
    header gives it (`ss_output_name`). Raises ReverieError where there is none.
    """
    own = [Path(part) for part in os.environ.get(FOLDERS, "").split(os.pathsep) if part]
    files = [*_inside(folders, "*"), *_inside(own, "**/*")]
    for names in (_names, _alias):
        for root, file in files:
            if name in names(root, file):
                return file
    near = difflib.get_close_matches(name, [file.stem for _, file in files], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    where = ", ".join(map(str, dict.fromkeys([*folders, *own])))
    missing = f"no LoRA '{name}' in {where}" if where else f"nowhere to look for the LoRA '{name}'"
    hint += "put it there, or " if where else ""
    raise ReverieError(f"{missing}; {hint}set {FOLDERS} to the folder that holds it")


def _inside(roots: Iterable[Path], pattern: str) -> Iterator[tuple[Path, Path]]:
    for root in dict.fromkeys(roots):
        for file in sorted(root.glob(pattern)) if root.is_dir() else ():
            if file.suffix in SUFFIXES or (file / PEFT_CONFIG).is_file():
                yield root, file


def _names(root: Path, file: Path) -> set[str]:
    inside = file.relative_to(root)
    return {file.stem, file.name, inside.as_posix(), inside.with_suffix("").as_posix()}


def _alias(root: Path, file: Path) -> set[str]:
    name = header(file).get("__metadata__", {}).get("ss_output_name") if file.suffix == ".safetensors" else None
    return {name} if isinstance(name, str) else set()


def header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, nothing where it cannot be read."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            found = json.loads(opened.read(length)) if length <= LONGEST_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("__metadata__", {}), dict) else {}


def loras(listed: Sequence[str], prompts: Sequence[str], folders: Sequence[str] = ()) -> list[Adapter]:
    """Return the LoRAs that a request lists, and those that its prompts name.

    One listed by a bare name that is no file here is looked for in the folders too. Raises ReverieError where one is
    not found.
    """
    given = [Path(folder) for folder in folders]
    found = [(_locate(path, given), unet, text) for path, unet, text in map(parse, listed)]
    near = [*(path.parent for path, _, _ in found), *given]
    tags = [tag for prompt in prompts for tag in extract(prompt).loras]
    return [*found, *((find(tag.name, near), tag.unet, tag.text) for tag in tags)]


def embeddings(listed: Sequence[str], folders: Sequence[str] = ()) -> list[Path]:
    """Return the files of textual inversions that a request lists; of a folder, all in it."""
    files: list[Path] = []
    for path in (_locate(Path(text), [Path(folder) for folder in folders]) for text in listed):
        files += sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    return files


def _locate(path: Path, folders: Sequence[Path]) -> Path:
    """Return where a file is: as it is named, or, for a bare name, found by it."""
    if path.exists() or len(path.parts) > 1 or not (folders or os.environ.get(FOLDERS)):
        return path
    return find(path.name, folders)


def weights_file(path: Path) -> Path:
    """Return the file of tensors of a LoRA: itself, or that of a folder of peft's."""
    return next((path / name for name in FOLDER_WEIGHTS if (path / name).is_file()), path)


def record(
    listed: Mapping[str, Sequence[str]], prompts: Sequence[str], negatives: Sequence[str], known: Mapping[str, str]
) -> dict[str, Any]:
    """Return what is written down of `loras` and `embeddings`: names without folders, and `sums` of the files.

    `listed` holds `folders` too. Of a folder of embeddings those are written down whose words the prompts say. A file
    that is not there has the sum that `known` gives it.
    """
    try:
        adapters = [path for path, _, _ in loras(listed["loras"], prompts, listed["folders"])]
        words = embeddings(listed["embeddings"], listed["folders"])
    except ReverieError:
        adapters, words = [], []
    single = [Path(text).name for text in listed["embeddings"] if not Path(text).is_dir()]
    said = " ".join((*prompts, *negatives)).lower()
    words = [file for file in words if file.is_file() and (file.name in single or _is_said(file, said))]
    sums = {**known, **{path.name: sum_of(path) for path in (*adapters, *words) if weights_file(path).is_file()}}
    names = {"loras": list(map(_bare, listed["loras"])), "embeddings": single}
    names["embeddings"] += [file.name for file in words if file.name not in single]
    return names | ({"sums": sums} if sums else {})


def _bare(text: str) -> str:
    """Leave the folders out of what names a LoRA."""
    path = parse(text)[0]
    return path.name + text[len(str(path)) :] if text.startswith(str(path)) else path.name


def _is_said(file: Path, said: str) -> bool:
    """Tell whether prompts name an inversion: by its file's name, or by one that the file itself may give."""
    if file.stem.lower() in said:
        return True
    if file.suffix == ".safetensors":
        return any(name.lower() in said for name in header(file) if name != "__metadata__")
    return b"string_to_param" not in file.read_bytes()  # A1111's answer to the file's name alone


def changed_files(files: Iterable[Path], sums: Mapping[str, str]) -> list[str]:
    """Say which files are not those that were written down; nothing where nothing was."""
    present = [file for file in files if sums and weights_file(file).is_file()]
    return [
        f"'{file.name}' is not the file that it was: its SHA-256 is {sum_of(file)}"
        + (f" and was {sums[file.name]}" if file.name in sums else "")
        for file in present
        if sum_of(file) not in sums.values()
    ]


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the tensors of a folder of peft's; computed once for each state of it."""
    state = weights_file(path).stat()
    return _sum(weights_file(path), state.st_size, state.st_mtime_ns)


def files_sum(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a model's file, or of the sums of its several files."""
    sums = [sum_of(file) for file in files]
    return sums[0] if len(sums) == 1 else sha256_of(sums)


@lru_cache(maxsize=256)
def _sum(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
