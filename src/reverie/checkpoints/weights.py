"""How do the weights on disk get into a module? Mapped or converted tensor by tensor, after a check of every name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reverie.errors import ReverieError

Rename = Callable[[str], str]

# Converted tensors leave their source's pages mapped; after so many bytes the file is opened anew, which drops them.
REOPEN_AFTER = 8 << 20


class Source(Protocol):
    """An open file of named tensors."""

    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def tensor(self, name: str) -> Tensor: ...


class Safetensors:
    """Read a safetensors file through a memory map: a tensor costs memory only where it is touched."""

    def __init__(self, file: Path):
        try:
            self._handle = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ReverieError(f"{file} is damaged or cut short ({error}); fetch it again") from error

    def names(self) -> Iterable[str]:
        return self._handle.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        return self._handle.get_tensor(name)


class Pickle:
    """Read a torch pickle that holds tensors alone; anything else in it is refused."""

    def __init__(self, file: Path):
        self._tensors = _read_pickle(file)
        if not isinstance(self._tensors, dict) or not all(isinstance(x, Tensor) for x in self._tensors.values()):
            raise ReverieError(f"{file} is not a plain table of tensors; convert it to safetensors")

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def _read_pickle(file: Path) -> Any:
    try:
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\3\4"  # files older than torch 1.6 are not, and cannot be mapped
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ReverieError(f"{file} holds more than tensors; convert it to safetensors") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ReverieError(f"{file} is damaged or cut short; fetch it again") from error


def open_source(file: Path) -> Source:
    """Open a file of tensors by its suffix. Raises ReverieError where it is damaged or holds anything but tensors."""
    return Safetensors(file) if file.suffix == ".safetensors" else Pickle(file)


def find_weights(folder: Path, stem: str, dtype: torch.dtype) -> list[Path]:
    """List the files with a component's weights: one, or the shards of an index.

    Safetensors go before pickles; for float16 the half-precision variant goes before the plain one, else after it.
    `stem` is the file's name without variant and suffix. Raises ReverieError where there are none.
    """
    variants = (".fp16", "") if dtype == torch.float16 else ("", ".fp16")
    for kind, name in (("safetensors", stem), ("bin", "pytorch_model" if stem == "model" else stem)):
        for variant in variants:
            if (single := folder / f"{name}{variant}.{kind}").is_file():
                return [single]
            if (index := folder / f"{name}.{kind}.index{variant}.json").is_file():
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


def load_weights(
    module: nn.Module, files: list[Path], *, device: torch.device, dtype: torch.dtype, rename: Rename
) -> None:
    """Give a module built on the meta device its weights, on `device` in `dtype`.

    Where device and dtype are the file's own, the tensors stay mapped: they take memory when they are used, and the
    file must not be changed in place while they live. Otherwise they are converted one by one, so the peak is about
    what the module will take. Raises ReverieError, before anything is read, where names or shapes do not agree.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    places = {file: {rename(name): name for name in open_source(file).names() if not _obsolete(name)} for file in files}
    _check(wanted, _shapes(places), files)
    state = {name: tensor for file in files for name, tensor in _read(file, places[file], device, dtype)}
    module.load_state_dict(state, assign=True)
    module.eval()


def _obsolete(name: str) -> bool:
    """Tell whether a tensor is the table 0, 1, 2, ... that transformers stored before version 4.31."""
    return name.endswith(".position_ids")


def _shapes(places: Mapping[Path, Mapping[str, str]]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for file, names in places.items():
        source = open_source(file)
        shapes.update({ours: source.shape(theirs) for ours, theirs in names.items()})
    return shapes


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


def _read(
    file: Path, names: Mapping[str, str], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield a file's tensors by their new names, converted one by one or left mapped where nothing changes."""
    source, converted = open_source(file), 0
    for ours, theirs in names.items():
        stored = source.tensor(theirs)
        tensor = stored.to(device, dtype if stored.is_floating_point() else stored.dtype)
        if tensor is not stored:
            converted += stored.nbytes
        del stored
        yield ours, tensor
        if converted > REOPEN_AFTER:
            source, converted = open_source(file), 0


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ReverieError where the file is missing or holds something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReverieError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ReverieError(f"{file} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise ReverieError(f"{file} is damaged: it should hold a JSON object")
    return data
