"""Weights from disk into a module: mapped or converted tensor by tensor, after a check of every name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reverie.checkpoints.extents import open_safetensors
from reverie.checkpoints.pickles import open_pickle
from reverie.checkpoints.quantised import GGUF, GGUF_MAGIC, with_scales
from reverie.errors import ReverieError
from reverie.files import reason_of

Rename = Callable[[str], str]

HASHED, BLOCK = 64, 4096  # how many blocks of a file are hashed, and their bytes
PICKLES = (b"PK\3\4", b"\x80")  # a zip file of torch 1.6 and later, and a bare pickle


class Source(Protocol):
    """An open file of named tensors; asking for anything but `tensor` reads no weights."""

    @property
    def metadata(self) -> Mapping[str, str]: ...
    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def tensor(self, name: str) -> Tensor: ...


def same(name: str) -> str:
    """Leave a name as it is."""
    return name


def open_source(file: Path) -> Source:
    """Open a file of tensors, told by its first bytes: safetensors, a torch pickle (.ckpt, .pt, .pth, .bin), or GGUF.

    Quantised weights are read dequantised. Raises ReverieError where it is none of them, is damaged, or holds what is
    neither weights nor harmless.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise ReverieError(f"cannot read {file}: {reason_of(error)}") from error
    if head.startswith(GGUF_MAGIC):
        return GGUF(file)
    if head[8:9] == b"{":
        return with_scales(open_safetensors(file))
    if head.startswith(PICKLES):
        return open_pickle(file)
    if file.suffix == ".safetensors":
        return open_safetensors(file)  # damaged, as it will say
    raise ReverieError(f"{file} {_other(head)}; reverie reads .safetensors, GGUF and files of torch.save")


def _other(head: bytes) -> str:
    """Say what a file that is no weights seems to be."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://"):
        return "only points to weights that git-lfs should fetch (`git lfs pull`)"
    if head.lstrip()[:1] == b"<":
        return "is a web page"
    return "is no file of weights"


def find_weights(folder: Path, stem: str, dtype: torch.dtype | None, variant: str | None = None) -> list[Path]:
    """List the files with a component's weights: one, or the shards of an index.

    Safetensors go before pickles. A variant that is asked for goes before plain files; else, for float16 the
    half-precision one does, and for others it comes after them. `stem` is the file's name without variant and suffix.
    Raises ReverieError where there are none.
    """
    halves = (".fp16", "") if dtype == torch.float16 else ("", ".fp16")
    variants = (f".{variant}", *halves) if variant else halves
    for kind, name in (("safetensors", stem), ("bin", "pytorch_model" if stem == "model" else stem)):
        for middle in variants:
            if (single := folder / f"{name}{middle}.{kind}").is_file():
                return [single]
            if (index := folder / f"{name}.{kind}.index{middle}.json").is_file():
                return _shards(index)
    raise ReverieError(f"no weights in {folder}; it should hold {stem}.safetensors")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict):
        raise ReverieError(f"{index} is damaged: it should hold a weight_map")
    shards = [index.parent / Path(name).name for name in sorted(set(table.values()))]
    for shard in shards:
        if not shard.is_file():
            raise ReverieError(f"{shard} is missing, though {index.name} names it; fetch it again")
    return shards


def content_hash(files: Iterable[Path]) -> str:
    """Return 10 hexadecimal digits that tell files of weights apart: the SHA-256 of their sizes and of blocks of them.

    HASHED blocks are spread over each file, so that a model of 7 GB costs as little as one of 2 GB; this is not
    AUTOMATIC1111's hash, which reads all. Raises ReverieError where a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with file.open("rb") as opened:
                for index in range(HASHED):
                    opened.seek(max(0, size - BLOCK) * index // (HASHED - 1))
                    digest.update(opened.read(BLOCK))
        except OSError as error:
            raise ReverieError(f"cannot read {file}: {reason_of(error)}") from error
    return digest.hexdigest()[:10]


def load_weights(
    module: nn.Module, files: list[Path], *, device: torch.device, dtype: torch.dtype | None, rename: Rename = same
) -> None:
    """Give a module built on the meta device its weights, on `device` in `dtype` (None: the file's own).

    Where device and dtype are the file's own, the tensors stay mapped: they take memory when they are used, and the
    file must not be changed in place while they live. Otherwise they are converted one by one, so the peak is about
    what the module will take. Raises ReverieError, before anything is read, where names or shapes do not agree.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    sources = [open_source(file) for file in files]
    found = {rename(name): (source, name) for source in sources for name in source.names() if not _obsolete(name)}
    _check(wanted, {ours: source.shape(theirs) for ours, (source, theirs) in found.items()}, files)
    state = {ours: _convert(source.tensor(theirs), device, dtype) for ours, (source, theirs) in found.items()}
    module.load_state_dict(state, assign=True)
    module.eval()


def _obsolete(name: str) -> bool:
    """Tell whether a tensor is the table 0, 1, 2, ... that transformers stored before version 4.31."""
    return name.endswith(".position_ids")


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], files: list[Path]) -> None:
    where = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} shards)"
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    complaints = []
    if missing:
        complaints.append(f"'{missing[0]}' is missing{_others(missing)}")
    if unknown:
        complaints.append(f"'{unknown[0]}' is not known{_others(unknown)}")
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    if wrong:
        name = wrong[0]
        complaints.append(f"'{name}' has shape {found[name]}, the config asks for {wanted[name]}{_others(wrong)}")
    if complaints:
        raise ReverieError(f"{where} does not fit its config.json: {', '.join(complaints)}")


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def _convert(stored: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """Give weights their device and dtype; whole numbers keep theirs."""
    return stored.to(device, dtype if stored.is_floating_point() else stored.dtype)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ReverieError where the file is missing or holds something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReverieError(f"cannot read {file}: {reason_of(error)}") from error
    except ValueError as error:
        raise ReverieError(f"{file} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise ReverieError(f"{file} is damaged: it should hold a JSON object")
    return data
