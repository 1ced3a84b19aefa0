"""Sharding: each process holds a part of every weight, and of all that is kept for it (FSDP, Zhao et al. 2304.11277).

Checkpoints are folders of torch.distributed.checkpoint, in which each process writes its parts; any number of processes
reads them.
"""

from __future__ import annotations

import io
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import keystr, tree_map_with_path

from reverie.files import atomic_write
from reverie.train.layers import LAYERS
from reverie.train.parallel import average, first_ahead, is_first, is_sharded, ranks

METHODS = ("first", "embed_hint", "encode_image", "encode_text")  # that compute with weights, beside `forward`
METADATA = ".metadata"  # in the folder of a checkpoint; torch writes it last
PLAIN = "plain.pt"  # beside it: what of a state is no tensor
NAMES = {
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("TensorStorageMetadata", "TensorProperties")),
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.serialization._get_layout",
    *(f"torch.{name}" for name in ("Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "bool")),
    *(f"pathlib{part}.{name}" for part in ("", "._local") for name in ("Path", "PosixPath", "WindowsPath")),
}
"""What the metadata of a checkpoint may name."""


def shard_(networks: Iterable[nn.Module], device: torch.device) -> list[FSDPModule]:
    """Leave this process a part of every weight, and gather a layer's whole for as long as it computes.

    Gradients are summed over the processes as they are found, and each keeps those of its part. Single numbers, such as
    CLIP's temperature, stay whole. Returns what `whole` takes.
    """
    mesh = init_device_mesh(device.type, (ranks().size,))
    mesh._pg_registry.clear()  # torch's caches keep meshes, which would keep the group; they find it by name as well
    sharded: list[FSDPModule] = []
    for network in _callable(networks):
        for module in (*(inner for inner in network.modules() if isinstance(inner, LAYERS)), network):
            numbers = {weight for weight in module.parameters() if not weight.ndim}
            if all(is_sharded(weight) or weight in numbers for weight in module.parameters()):
                continue  # such as a LoRA's, which are among its network's
            made = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=numbers)
            made.set_gradient_divide_factor(1.0)
            made.set_force_sum_reduction_for_comms(True)  # gloo has no other
            for name in METHODS:
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)
            sharded.append(made)
    return sharded


def _callable(networks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Return networks, and those that a table of them holds."""
    for network in networks:
        if isinstance(network, nn.ModuleDict):
            yield from _callable(network.values())
        else:
            yield network


@contextmanager
def whole(sharded: Sequence[FSDPModule]) -> Iterator[None]:
    """Gather the whole weights in every process for the length of a `with` block: each computes and reads by itself."""
    inner = {module for one in sharded if isinstance(one, nn.Module) for module in one.modules()}
    hooks = [(module, module._state_dict_pre_hooks) for module in inner]  # by which `state_dict` would take parts again
    try:
        for layer in sharded:
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
        for module, _ in hooks:
            module._state_dict_pre_hooks = OrderedDict()
        yield
    finally:
        for module, own in hooks:
            module._state_dict_pre_hooks = own
        for layer in sharded:
            layer.reshard()
            layer.set_reshard_after_forward(True, recurse=False)


def save(folder: Path, state: Any) -> None:
    """Write a state, of which all processes hold parts, into a folder that is whole once it has its METADATA.

    Where that fails, what was written until then stays until the next one is.
    """
    tensors, outline = _part(state)
    with first_ahead():
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)  # what a kill left
            folder.mkdir(parents=True)
            with atomic_write(folder / PLAIN, sync=True) as path, path.open("wb") as file:
                torch.save(outline, file)
    with _as_it_was():
        state_dict_saver.save(tensors, storage_writer=FileSystemWriter(folder), no_dist=ranks().size == 1)


def load(folder: Path, state: Any) -> Any:
    """Read a state into the tensors of one, in whatever parts processes hold it; return it with what else it holds.

    Raises BadZipFile where a file is damaged and ValueError where the states are of two recipes.
    """
    reader = _Reader(folder)
    _check(folder, reader.read_metadata())
    saved = torch.load(folder / PLAIN, weights_only=True)
    tensors, _ = _match(saved, state)
    with _as_it_was():
        state_dict_loader.load(tensors, storage_reader=reader, no_dist=ranks().size == 1)
    return _join(saved, tensors)


def divide(saved: Any, state: Any) -> Any:
    """Copy a whole state into the tensors of one that processes hold in parts; return it as `load` does."""
    tensors, given = _match(saved, state)
    for name, tensor in tensors.items():
        whole_one = given[name]
        if isinstance(tensor, DTensor):
            whole_one = distribute_tensor(whole_one, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.copy_(whole_one)
    return _join(saved, tensors)


def _match(saved: Any, state: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of two states by their paths. Raises ValueError where they are of other shapes."""
    given, tensors = _part(saved)[0], _part(state)[0]
    if {name: one.shape for name, one in given.items()} != {name: one.shape for name, one in tensors.items()}:
        raise ValueError("other tensors")
    return tensors, given


def _join(saved: Any, tensors: dict[str, Tensor]) -> Any:
    return tree_map_with_path(lambda path, leaf: tensors.get(keystr(path), leaf), saved)


def _part(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a state by their paths, and the state with blanks of their shapes in their place."""
    tensors: dict[str, Tensor] = {}

    def blank(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors[keystr(path)] = leaf
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    return tensors, tree_map_with_path(blank, state)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Raise what went wrong in one of the processes, in place of torch's tale of it, which is no Exception.

    That one process is alone is no news.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def _check(folder: Path, metadata: Metadata) -> None:
    """Raise BadZipFile, in all processes, where one finds a tensor whose checksum, which torch ignores, is another."""
    here = ranks()
    damaged = any(map(partial(_is_damaged, folder), [*metadata.storage_data.values()][here.index :: here.size]))
    if average({"damaged": damaged})["damaged"]:
        raise BadZipFile(str(folder))


def _is_damaged(folder: Path, place: Any) -> bool:
    try:
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            with ZipFile(io.BytesIO(file.read(place.length))) as archive:
                return archive.testzip() is not None
    except (OSError, BadZipFile):
        return True


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among metadata")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Read a checkpoint's metadata by an allow-list, which runs nothing."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what is where. Raises UnpicklingError for what is none."""
        try:
            with (Path(self.path) / METADATA).open("rb") as file:
                metadata = _Unpickler(file).load()
            assert isinstance(metadata, Metadata)
        except Exception as error:
            raise pickle.UnpicklingError(str(error)) from error
        return metadata
