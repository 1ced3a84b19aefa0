"""The tensors of a torch pickle, rebuilt by an allow-list as extents of the file; nothing in it is run.

torch writes zip files since 1.6 (data.pkl, and each storage in an entry of its own), before that five pickles in a row
with the storages behind them. TorchScript's archives (OpenAI's CLIP) are zip files too, whose data.pkl holds a module.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from reverie.checkpoints.extents import LONGEST_AXIS, Entry, Extent, Mapped, check_shape, entries, reach
from reverie.checkpoints.opcodes import Forbidden, Inert, Machine, Rebuilder, Scripted, table
from reverie.errors import ReverieError
from reverie.files import reason_of

LONGEST_PICKLE = 32 << 20  # bytes; a full SD 1.5 has half a megabyte
MOST_TENSORS = 100_000
DEEPEST_MODULE = 32
PARAMETERS = "torch.nn.modules.container.ParameterDict"  # the first trainer of textual inversions' `string_to_param`
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch.serialization

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# What trainers left beside the weights: known to be harmless, and not rebuilt all the same.
LIGHTNING = ("callbacks.model_checkpoint.ModelCheckpoint", "callbacks.early_stopping.EarlyStopping")
INERT = {
    *(f"{package}.{name}" for package in ("pytorch_lightning", "lightning.pytorch") for name in LIGHTNING),
    *(f"pytorch_lightning.utilities.{name}" for name in ("parsing.AttributeDict", "enums.LightningEnum")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("Container", "ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(f"{builtins}.{name}" for builtins in ("builtins", "__builtin__") for name in ("dict", "float", "int", "list")),
    *(f"{builtins}.{name}" for builtins in ("builtins", "__builtin__") for name in ("set", "str", "bool", "tuple")),
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
    *(f"torch.{name}" for name in ("device", "float16", "float32", "float64", "bfloat16", "int64")),
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "typing.Any",
    "_codecs.encode",  # how protocol 2 writes the bytes of a numpy scalar
}


@dataclass(frozen=True)
class Storage:
    """Name a storage: a run of numbers that tensors are views of."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class View:
    """Describe a tensor as a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def at(self, start: int) -> Extent:
        """Place the view in a file whose byte `start` begins its storage."""
        return Extent(start + self.offset * self.storage.dtype.itemsize, self.storage.dtype, self.shape, self.stride)


def open_pickle(file: Path) -> Mapped:
    """Open a torch file of tensors; what else is in it is left out.

    The tensors of a trainer's checkpoint are those of its `state_dict`; of other nested tables the names are joined by
    dots. Raises ReverieError where the file is damaged, names what is neither tensor nor harmless, or has no tensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            zipped = opened.read(2) == b"PK"
            extents = (_read_zip if zipped else _read_legacy)(opened, size)
    except Forbidden as error:
        raise ReverieError(
            f"{file} wants to run {error}, which has no place among weights and was not run; "
            "distrust it, and look for a .safetensors file"
        ) from None
    except OSError as error:
        raise ReverieError(f"cannot read {file}: {reason_of(error)}") from error
    except (ValueError, OverflowError) as error:
        raise ReverieError(f"{file} is damaged or cut short ({_reason(error)}); fetch it again") from error
    if not extents:
        raise ReverieError(f"{file} holds no tensors that reverie can find; give a file of weights")
    return Mapped(file, extents)


def _read_zip(opened: BinaryIO, size: int) -> dict[str, Extent]:
    found = entries(opened, size, _is_code)
    roots = [name.removesuffix("data.pkl") for name in found if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(roots) != 1:
        raise ValueError(f"it holds {len(roots)} files data.pkl, where torch writes one")
    root = roots[0]
    if f"{root}byteorder" in found and _entry(opened, found[f"{root}byteorder"]) != sys.byteorder.encode():
        raise ValueError(f"its numbers are not in the byte order of this machine, {sys.byteorder}-endian")
    machine = Machine(_entry(opened, found[f"{root}data.pkl"]), 0, _find, _storage)
    placed = {}
    for name, view in _named_views(machine.run()):
        entry = found.get(f"{root}data/{view.storage.key}")
        if entry is None or entry.length < view.storage.count * view.storage.dtype.itemsize:
            raise ValueError(f"the data of {ascii(name)[:80]} is missing or cut short")
        placed[name] = view.at(entry.start)
    return placed


def _is_code(name: str) -> bool:
    """Tell of an archive's entry whether it holds TorchScript's sources, which are compressed and of no use here."""
    return name.split("/")[1:2] == ["code"]


def _entry(opened: BinaryIO, entry: Entry) -> bytes:
    if entry.length > LONGEST_PICKLE:
        raise ValueError(f"its list of tensors claims {entry.length} bytes; at most {LONGEST_PICKLE} are read")
    opened.seek(entry.start)
    return opened.read(entry.length)


def _read_legacy(opened: BinaryIO, size: int) -> dict[str, Extent]:
    opened.seek(0)
    data, position = opened.read(LONGEST_PICKLE), 0
    parts: list[Any] = []
    storages: dict[str, Storage] = {}

    def remember(pid: object) -> Storage:
        storage = _storage(pid)
        return storages.setdefault(storage.key, storage)

    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL, None, None, None):
        machine = Machine(data, position, _find, remember)
        parts.append(machine.run())
        if expected is not None and parts[-1] != expected:
            raise ValueError("it does not begin as torch's pickles do")
        position = machine.position
    _, _, system, content, keys = parts
    if isinstance(system, dict) and system.get("little_endian", True) is not (sys.byteorder == "little"):
        raise ValueError(f"its numbers are not in the byte order of this machine, {sys.byteorder}-endian")
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    starts = _follow(opened, size, position, [storages[str(key)] for key in keys])
    return {name: view.at(starts[view.storage.key]) for name, view in _named_views(content)}


def _follow(opened: BinaryIO, size: int, position: int, storages: list[Storage]) -> dict[str, int]:
    """Say where each storage begins: they follow one another, each behind its number of elements."""
    starts: dict[str, int] = {}
    for storage in storages:
        opened.seek(position)
        count = int.from_bytes(opened.read(8), "little")
        end = position + 8 + storage.count * storage.dtype.itemsize
        if count != storage.count or end > size:
            raise ValueError(f"its storage {ascii(storage.key)[:24]} is cut short")
        starts[storage.key], position = position + 8, end
    return starts


def _named_views(content: object) -> Iterator[tuple[str, View]]:
    """Find the tensors: those of `state_dict` where there is one, else of the table and of the tables in it.

    Those of a tuple are called by their numbers.
    """
    if isinstance(content, tuple):
        content = {str(number): one for number, one in enumerate(content)}
    if isinstance(content, Scripted):
        yield from _of_modules(content)
    if not isinstance(content, dict):
        return
    top: dict[Any, Any] = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    found = 0
    for prefix, inside in [("", top), *((f"{name}.", part) for name, part in top.items())]:
        named = inside.state.get("_parameters") if isinstance(inside, Scripted) else inside
        if not isinstance(named, dict):
            continue
        for name, value in named.items():
            if isinstance(value, View) and isinstance(name, str):
                found += 1
                yield f"{prefix}{name}", value
        if found > MOST_TENSORS:
            raise ValueError(f"it holds more than {MOST_TENSORS} tensors")


def _of_modules(root: Scripted) -> Iterator[tuple[str, View]]:
    """Find the tensors of a module and of the modules in it; the names are joined by dots, as in its `state_dict`."""
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.state.items():
            seen += 1
            if isinstance(value, View) and isinstance(name, str):
                yield f"{prefix}{name}", value
            elif isinstance(value, Scripted) and isinstance(name, str) and prefix.count(".") < DEEPEST_MODULE:
                waiting.append((f"{prefix}{name}.", value))
        if seen > MOST_TENSORS:
            raise ValueError(f"its modules hold more than {MOST_TENSORS} things")


def _find(module: str, name: str) -> object:
    """Say what a pickle's global stands for. Raises Forbidden, naming it, where it is on no list."""
    full = f"{module}.{name}"
    if full in REBUILDERS:
        return Rebuilder(full, REBUILDERS[full])
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if full in INERT:
        return Inert(full)
    if full.startswith("__torch__."):  # a class that TorchScript compiled from sources in the archive, which stay there
        return Rebuilder(full, lambda arguments: Scripted(full))
    raise Forbidden(ascii(full)[:120])


def _storage(pid: object) -> Storage:
    """Read a persistent id: ("storage", its class, its key, a device, how many elements), and in old files a view."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ValueError("it refers to something other than a storage")
    _, dtype, key, _, count, *view = pid
    if view not in ([], [None]):
        raise ValueError("it holds views of storages, which torch has not written since 0.4")
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("it describes a storage wrongly")
    return Storage(key, dtype, count)


def _tensor(arguments: tuple[Any, ...]) -> View:
    """Read the arguments of _rebuild_tensor_v2: storage, offset, shape, stride, and what does not matter here."""
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise ValueError("it rebuilds a tensor of something other than a storage")
    storage, offset, shape, stride = arguments[0], arguments[1], check_shape(arguments[2]), arguments[3]
    if not isinstance(stride, tuple) or len(stride) != len(shape):
        raise ValueError("a tensor has not one stride for each axis")
    if not all(type(step) is int and 0 <= step <= LONGEST_AXIS for step in (offset, *stride)):
        raise ValueError("a tensor has a negative or huge stride or offset")
    if offset + reach(shape, stride) > storage.count or math.prod(shape) > storage.count:
        raise ValueError(f"a tensor of {math.prod(shape)} elements at {offset} does not fit its {storage.count}")
    return View(storage, offset, shape, stride)


def _parameter(arguments: tuple[Any, ...]) -> View:
    """Read the arguments of _rebuild_parameter: a tensor, and what does not matter here."""
    if not arguments or not isinstance(arguments[0], View):
        raise ValueError("it makes a parameter of something other than a tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Read the arguments of OrderedDict: none, or in protocol 0 and 1 a list of pairs."""
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(pairs, list):
        raise ValueError("it makes a table of something other than pairs")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("it makes a table of something other than pairs")
    return table([item for pair in pairs for item in pair])


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Read the arguments of torch.Size: the axes."""
    return check_shape(arguments[0] if arguments else ())


REBUILDERS: dict[str, Callable[[tuple[Any, ...]], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    PARAMETERS: lambda arguments: Scripted(PARAMETERS),
}


def _reason(error: Exception) -> str:
    """Say in one line what is wrong; errors of decoding would quote the file."""
    return "its text is not in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:200]
