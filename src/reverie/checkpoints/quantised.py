"""Quantised weights, read as float32: GGUF, as stable-diffusion.cpp and city96's tools write it, and scaled float8.

GGUF holds blocks of whole numbers with a scale each, whose rules the package gguf has. Float8 weights of ComfyUI have a
scale each (or one a row), under `scale_weight` (older) or `weight_scale` with its format in `comfy_quant`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reverie.errors import ReverieError

if TYPE_CHECKING:
    from reverie.checkpoints.weights import Source

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
