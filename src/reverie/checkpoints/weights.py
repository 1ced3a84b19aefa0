"""Weights from disk into a module: mapped or converted tensor by tensor, after a check of every name.

Quantised ones are read as float32. GGUF, as stable-diffusion.cpp and city96's tools write it, holds blocks of whole
numbers with a scale each, whose rules the package gguf has. Float8 weights of ComfyUI have a scale each (or one a row),
under `scale_weight` (older) or `weight_scale` with its format in `comfy_quant`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reverie.checkpoints.extents import open_safetensors
from reverie.checkpoints.pickles import open_pickle
from reverie.errors import ReverieError
from reverie.files import reason_of

M = TypeVar("M", bound=nn.Module)

GGUF_MAGIC = b"GGUF"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # of weights that city96's tools lay out in rows of 256
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = ("scale_weight", "weight_scale")
BESIDE = (*SCALES, "scale_input", "input_scale", "comfy_quant", "scaled_fp8")  # the others change no weight


@dataclass(eq=False)
class ScaledFloat8:
    """Read a file's float8 weights multiplied by their scales, and the others as they are."""

    source: Source
    metadata: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.metadata, names = self.source.metadata, list(self.source.names())
        self._names = [name for name in names if not name.endswith(BESIDE)]
        stems = {
            name.removesuffix(scale) + "weight": name for scale in SCALES for name in names if name.endswith(scale)
        }
        self._scales = {name: stems[name] for name in self._names if name in stems}

    def names(self) -> Iterable[str]:
        """List the weights, without their scales."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape."""
        return self.source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return what a weight is stored as."""
        return self.source.dtype(name)

    def tensor(self, name: str) -> Tensor:
        """Read a weight, multiplied. Raises ReverieError where its scale is neither one number nor one a row."""
        stored = self.source.tensor(name)
        if name not in self._scales:
            return stored
        scale = self.source.tensor(self._scales[name]).float().flatten()
        if stored.dtype not in FLOAT8 or scale.numel() not in (1, len(stored)):
            kind = self._format(name) or f"{str(stored.dtype).removeprefix('torch.')} with {scale.numel()} scales"
            raise ReverieError(
                f"'{name}' is quantised as {kind}; reverie reads float8 with a scale for each weight or each row"
            )
        return stored.float() * scale.view(-1, *[1] * (stored.ndim - 1))

    def _format(self, name: str) -> str | None:
        """Return what ComfyUI calls a weight's format."""
        mark = name.removesuffix("weight") + "comfy_quant"
        if mark not in set(self.source.names()):
            return None
        with suppress(ValueError, TypeError, AttributeError):
            return str(json.loads(bytes(self.source.tensor(mark).tolist())).get("format"))[:40]
        return None


def with_scales(source: Source) -> Source:
    """Return a source whose float8 weights are multiplied by the scales that it holds; itself where it holds none."""
    return ScaledFloat8(source) if any(name.endswith(SCALES) for name in source.names()) else source


@dataclass(eq=False)
class GGUF:
    """Read the weights of a GGUF file, each dequantised when it is asked for."""

    file: Path
    metadata: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ReverieError(f"{self.file} is a GGUF file; reading it takes the extra gguf") from error
        try:
            reader = GGUFReader(self.file)
            self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
            self._shapes = {name: self._shape(reader, tensor) for name, tensor in self._tensors.items()}
            architecture = reader.get_field("general.architecture")
            self.metadata = {} if architecture is None else {"general.architecture": str(architecture.contents())}
        except OSError as error:
            raise ReverieError(f"cannot read {self.file}: {error.strerror}") from error
        except Exception as error:  # the reader checks little: what it raises on damaged files is of many kinds
            raise ReverieError(f"{self.file} is damaged or cut short ({' '.join(str(error).split())[:200]})") from error

    def _shape(self, reader: Any, tensor: Any) -> tuple[int, ...]:
        given = reader.get_field(ORIGINAL_SHAPE + tensor.name)
        shape = tuple(map(int, tensor.shape[::-1] if given is None else given.contents()))
        if math.prod(shape) != tensor.n_elements:
            raise ValueError(f"{ascii(tensor.name)[:80]} has {tensor.n_elements} elements, not those of {shape}")
        return shape

    @property
    def formats(self) -> list[str]:
        """Name the formats of the weights, such as Q8_0, the one that holds most first."""
        sizes: dict[str, int] = {}
        for tensor in self._tensors.values():
            sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
        return sorted(sizes, key=lambda name: -sizes[name])

    def names(self) -> Iterable[str]:
        """List the weights."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape, as it was before it was quantised."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Return what a weight is read as."""
        return DTYPES.get(self._tensors[name].tensor_type.name, torch.float32)

    def tensor(self, name: str) -> Tensor:
        """Read a weight. Raises ReverieError where the package gguf does not know its format."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ReverieError(
                f"{self.file}: '{name}' is quantised as {tensor.tensor_type.name}, unread here"
            ) from error
        return torch.from_numpy(np.array(values)).view(self._shapes[name]).to(self.dtype(name))


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
    other = _other(head)
    if file.suffix == ".safetensors" and other == NO_WEIGHTS:
        return open_safetensors(file)  # damaged, as it will say
    raise ReverieError(f"{file} {other}; reverie reads .safetensors, GGUF and files of torch.save")


NO_WEIGHTS = "is no file of weights"


def _other(head: bytes) -> str:
    """Say what a file that is no weights seems to be."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://"):
        return "only points to weights that git-lfs should fetch (`git lfs pull`)"
    if head.lstrip()[:1] == b"<":
        return "is a web page"
    return NO_WEIGHTS


def find_weights(folder: Path, stem: str, dtype: torch.dtype | None, variant: str | None = None) -> list[Path]:
    """List the files with a component's weights: one, or the shards of an index.

    Safetensors go before pickles. A variant that is asked for goes before plain files; else, for float16 the
    half-precision one does, and for others (`dtype` None too) it comes after them. `stem` is the file's name without
    variant and suffix.
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


class _Blank(TorchFunctionMode):
    """Leave new modules without initial values.

    On the meta device values take no memory anyway, but torch would import its compiler, for seconds, to draw nothing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Skip torch.nn.init and let everything else be."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def blueprint(make: Callable[[], M]) -> M:
    """Build a network on the meta device, without values: a checkpoint is about to give it its own."""
    with torch.device("meta"), _Blank():
        return make()


def load_weights(
    module: nn.Module, files: list[Path], *, device: torch.device, dtype: torch.dtype | None, rename: Rename = same
) -> None:
    """Give a module built on the meta device its weights, on `device` in `dtype` (None: the file's own).

    Where device and dtype are the file's own, the tensors stay mapped: they take memory when they are used, and the
    file must not be changed in place while they live. Otherwise they are converted one by one, so the peak is about
    what the module will take. `rename` turns the files' names into the module's. Raises ReverieError, before anything
    is read, where names or shapes do not agree.
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
