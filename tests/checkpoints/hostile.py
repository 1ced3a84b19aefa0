"""Which files of weights would run code, or take the machine down? Run with a folder of them, this opens each in turn.

Many ways in are from the public issues of picklescan and modelscan, whose lists of forbidden names they got around.
"""

from __future__ import annotations

import json
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError

MEMORY = 1 << 30

# Pickles, opcode by opcode


def glob(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return glob(module, name) + tuple_of(*arguments) + b"R"


def table(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), glob("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(shape: Iterable[int], stride: Iterable[int], count: int = 4, offset: int = 0, key: str = "0") -> bytes:
    axes, steps = tuple_of(*map(number, shape)), tuple_of(*map(number, stride))
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage(count, key), number(offset), axes, steps, b"\x89", hooks)


GOOD = tensor((2, 2), (2, 1))  # fits the storage that `zipped` adds

# Files


def zipped(data_pkl: bytes, entries: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """Write a zip as torch does, with one storage of four numbers unless other entries are given."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for name, data in ({"archive/data/0": bytes(16)} if entries is None else entries).items():
            archive.writestr(name, data)
    return file.getvalue()


def weights(value: bytes) -> bytes:
    """Write a zip whose table holds a good tensor and beside it a value."""
    return zipped(program(table(good=GOOD, other=value)))


LEGACY = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
STORAGES = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)


def legacy(content: bytes = program(table(good=GOOD)), tail: bytes = STORAGES, head: list[bytes] = LEGACY) -> bytes:
    """Write a file as torch did before 1.6."""
    return b"".join(head) + content + tail


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Write a safetensors file with any header, which may lie about its length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


# The corpus


def code(canary: Path) -> dict[str, bytes]:
    """Write values whose unpickling would run `touch canary`, by way of every name that people found."""
    shell, source = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    argv = b"](" + text("sh") + text("-c") + shell + b"e"
    nested = b"B" + struct.pack("<I", len(program(call("os", "system", shell)))) + program(call("os", "system", shell))
    imported, eval_name = call("builtins", "__import__", text("os")), text("eval")
    memo = text("os") + b"q\x00" + text("system") + b"q\x01" + text("torch") + b"\x94" + text("Size") + b"\x94"
    return {
        "os_system": call("os", "system", shell),
        "posix_system": call("posix", "system", shell),
        "os_popen": call("os", "popen", shell),
        "subprocess_popen": call("subprocess", "Popen", argv),
        "subprocess_check_output": call("subprocess", "check_output", argv),
        "eval": call("builtins", "eval", source),
        "exec": call("builtins", "exec", source),
        "python2_eval": call("__builtin__", "eval", source),
        "dotted_eval": call("torch", "serialization.os.system", shell),
        "compile": call("builtins", "exec", call("builtins", "compile", source, text("x"), text("exec"))),
        "import": imported,
        "getattr": call("builtins", "getattr", imported, text("system")) + tuple_of(shell) + b"R",
        "import_module": call("importlib", "import_module", text("os")),
        "attrgetter": call("operator", "attrgetter", text("system"))
        + tuple_of(imported)
        + b"R"
        + tuple_of(shell)
        + b"R",
        "methodcaller": call("operator", "methodcaller", text("system"), shell) + tuple_of(imported) + b"R",
        "resolve_name": call("pkgutil", "resolve_name", text("os:system")) + tuple_of(shell) + b"R",
        "runpy": call("runpy", "_run_code", source, b"}"),
        "pip": call("pip", "main", b"](" + text("install") + text("no-such-package") + b"e"),
        "nested_pickle": call("pickle", "loads", nested),
        "nested_c_pickle": call("_pickle", "loads", nested),
        "nested_torch": call("torch", "load", text("/dev/null")),
        "torch_hub": call("torch.hub", "load", text("a/b"), text("c")),
        "marshal": call("marshal", "loads", nested),
        "function": call("types", "FunctionType", call("types", "CodeType")),
        "timeit": call("timeit", "timeit", source),
        "profile": call("cProfile", "run", source),
        "debugger": call("pdb", "run", source),
        "idle": call("idlelib.run", "Executive.runcode", source),
        "terminal": call("pty", "spawn", text("touch")),
        "library": call("ctypes", "CDLL", text("libc.so.6")),
        "open": call("builtins", "open", text(str(canary)), text("w")),
        "rmtree": call("shutil", "rmtree", text(str(canary))),
        "runstring": call("numpy.testing._private.utils", "runstring", source, b"}"),
        "numpy_builtins": call("builtins", "dict.get", glob("numpy", "__builtins__"), eval_name)
        + tuple_of(source)
        + b"R",
        "partial": call("functools", "partial", glob("os", "system"), shell) + b")R",
        "map": call("builtins", "list", call("builtins", "map", glob("os", "system"), tuple_of(shell))),
        "globals_of_allowed": call("collections", "OrderedDict.__init__.__globals__"),
        "method_of_allowed": call("torch", "Size.__class__.__subclasses__"),
        "inst": b"(" + shell + b"ios\nsystem\n",
        "obj": b"(" + glob("os", "system") + shell + b"o",
        "newobj": glob("os", "system") + tuple_of(shell) + b"\x81",
        "newobj_ex": glob("os", "system") + tuple_of(shell) + b"}\x92",
        "stack_global": text("os") + text("system") + b"\x93" + tuple_of(shell) + b"R",
        "memo_confusion": b"(" + memo + b"1h\x00h\x01\x93" + tuple_of(shell) + b"R",
        "extension": b"\x82\x01" + tuple_of(shell) + b"R",
        "build_function": glob("torch._utils", "_rebuild_tensor_v2") + table(a=text("os")) + b"b",
        "build_tensor": GOOD + table(__class__=glob("os", "system")) + b"b",
        "callback_state": call("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        + table(best=call("os", "system", shell))
        + b"b",
        "evil_hooks": call("torch._utils", "_rebuild_parameter", GOOD, b"\x89", call("os", "system", shell)),
        "many_lines": glob("os", "system\x1b[2Jtwo\rthree" + "x" * 5000),
        "reduce_data": text("os.system") + tuple_of(shell) + b"R",
        "reduce_storage": call("torch", "FloatStorage", number(1 << 40)),
        "big_allocation": call("builtins", "bytearray", number(1 << 40)),
        "numpy_allocation": call("numpy", "zeros", number(1 << 40)),
    }


def bombs() -> dict[str, bytes]:
    """Write values that would take time or memory."""
    laughs = b"]q\x00" + b"".join(b"](" + b"h%c" % depth * 10 + b"eq%c" % (depth + 1) for depth in range(200))
    doubled = b"K\x01q\x00" + b"".join(b"h%c" % depth * 2 + b"\x86q%c" % (depth + 1) for depth in range(200))
    colliding = b"".join(number(index * ((1 << 61) - 1)) + b"N" for index in range(1, 50_000))
    return {
        "memo_far": b"Nr\xff\xff\xff\xff" + b"(" * 10,
        "deep": b"]" * 900_000 + b"a" * 899_999,
        "deep_tuples": b")" + b"\x85" * 300_000 + b"}b",
        "marks": b"(" * 300_000,
        "flood": b"}" * 1_100_000,
        "laughs": laughs + b"R",
        "doubled_keys": b"}" + doubled + b"Ns",
        "colliding_keys": b"}(" + colliding + b"u",
        "long": b"\x8b" + struct.pack("<i", 1 << 24) + b"\x01" * (1 << 24),
        "decimal": b"L" + b"9" * 1_000_000 + b"L\n",
        "text_8": b"\x8d" + struct.pack("<Q", 1 << 63) + b"x",
        "bytes_8": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x",
        "negative_text": b"T" + struct.pack("<i", -5) + b"x",
        "no_utf8": b"X" + struct.pack("<I", 2) + b"\xff\xfe",
        "protocol": b"\x80\x63",
    }


def tensors() -> dict[str, bytes]:
    """Write tensors that do not fit their storage."""
    return {
        "huge_shape": tensor((1 << 50, 1 << 50), (1 << 50, 1)),
        "large_shape": tensor((1 << 20, 1 << 19), (1 << 19, 1), count=1 << 39),
        "shape_of_lies": tensor((100, 100), (100, 1), count=10_000),
        "negative_stride": tensor((2, 2), (-2, 1)),
        "negative_offset": tensor((2,), (1,), offset=-1),
        "negative_axis": tensor((-2,), (1,)),
        "negative_storage": tensor((2,), (1,), count=-4),
        "beyond": tensor((2, 2), (2, 1), offset=1),
        "far_stride": tensor((2, 2), (1 << 62, 1)),
        "expanded": tensor((1 << 30,), (0,)),
        "strides_missing": tensor((2, 2), (1,)),
        "many_axes": tensor((1,) * 5000, (1,) * 5000),
        "no_storage": call("torch._utils", "_rebuild_tensor_v2", text("0"), number(0), b")", b")"),
        "no_such_entry": tensor((1,), (1,), key="../../etc/passwd"),
        "float_axis": call("torch._utils", "_rebuild_tensor_v2", storage(4), number(0), b"(G" + bytes(8) + b"t", b")"),
        "persistent_view": tuple_of(text("storage"), glob("torch", "FloatStorage"), text("0"), text("cpu"), number(4))
        + b"(K\x01tQ",
        "persistent_module": tuple_of(text("module"), glob("torch", "Size"), text("x"), text("y")) + b"Q",
    }


def archives() -> dict[str, bytes]:
    """Write zip and legacy files that are not what they say."""
    good, zeros = zipped(program(table(good=GOOD))), bytes(16 << 20)
    two = zipped(program(table(good=GOOD)), {"archive/data/0": bytes(16), "archive/data/1": bytes(16)})
    central = [at for at in range(len(two)) if two.startswith(b"PK\1\2", at)]
    first, second = (struct.unpack_from("<I", two, at + 42)[0] for at in central[1:])
    assert first != second
    overlapping = two[: central[2] + 42] + struct.pack("<I", first) + two[central[2] + 46 :]
    encrypted = good.replace(b"PK\1\2\x14\x03\x14\x00\x00", b"PK\1\2\x14\x03\x14\x00\x01")
    far = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1 << 63, (1 << 64) - 1)
    zip64 = (
        b"PK\3\4"
        + far
        + struct.pack("<4sIQI", b"PK\6\7", 0, 4, 1)
        + struct.pack("<4s4H2IH", b"PK\5\6", *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0)
    )
    crowded = good[:-22] + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65000, 65000, 0xFFFFFFF0, 0, 0)
    return {
        "bomb": zipped(zeros, method=zipfile.ZIP_DEFLATED),
        "bomb_storage": zipped(program(table(good=GOOD)), {"archive/data/0": zeros}, zipfile.ZIP_DEFLATED),
        "up": zipped(program(table(good=GOOD)), {"archive/../../data/0": bytes(16)}),
        "absolute": zipped(program(table(good=GOOD)), {"/etc/cron.d/x": b"x"}),
        "backslash": zipped(program(table(good=GOOD)), {"archive\\..\\x": b"x"}),
        "two_pickles": zipped(program(table(good=GOOD)), {"other/data.pkl": program(table(good=GOOD))}),
        "no_pickle": zipped(b"").replace(b"data.pkl", b"data.txt"),
        "overlapping": overlapping,
        "encrypted": encrypted,
        "zip64": zip64,
        "crowded": crowded,
        "zip_half": good[: len(good) // 2],
        "zip_tail": good[:-30],
        "zip_start": good[:10],
        "zip_pickle_cut": zipped(program(table(good=GOOD))[:-30]),
        "zip_short_storage": zipped(program(table(good=GOOD)), {"archive/data/0": bytes(15)}),
        "zip_missing_storage": zipped(program(table(good=GOOD)), {}),
        "big_endian": zipped(program(table(good=GOOD)), {"archive/data/0": bytes(16), "archive/byteorder": b"big"}),
        "no_tensors": zipped(program(table(good=text("x")))),
        "no_table": zipped(program(b"](K\x01e")),
        "legacy_half": legacy()[:-10],
        "legacy_head": legacy()[:20],
        "legacy_magic": legacy(head=[pickle.dumps(7, 2), *LEGACY[1:]]),
        "legacy_keys": legacy(tail=pickle.dumps(["1"], 2)),
        "legacy_count": legacy(tail=pickle.dumps(["0"], 2) + struct.pack("<q", -1) + bytes(16)),
        "legacy_huge": legacy(program(table(good=tensor((1 << 38,), (1,), 1 << 38)))),
    }


def headers() -> dict[str, bytes]:
    """Write safetensors files whose header lies."""
    whole = safetensors({"a": entry(0, 16)}, bytes(16))
    many = b"{" + b",".join(b'"%d":{}' % index for index in range(900_000)) + b"}"
    return {
        "ten_gigabytes": safetensors(b'{"a": 1}', length=10 << 30),
        "header_of_lies": safetensors(b'{"a": 1}', length=1 << 20),
        "all_ones": safetensors(b'{"a": 1}', length=(1 << 64) - 1),
        "overlapping": safetensors({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)),
        "same_bytes": safetensors({"a": entry(0, 16), "b": entry(0, 16)}, bytes(16)),
        "out_of_range": safetensors({"a": entry(0, 1 << 40)}, bytes(16)),
        "negative": safetensors({"a": entry(-16, 0)}, bytes(16)),
        "backwards": safetensors({"a": entry(16, 0, [4])}, bytes(16)),
        "gap": safetensors({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)),
        "trailing": safetensors({"a": entry(0, 8)}, bytes(16)),
        "wrong_size": safetensors({"a": entry(0, 16, [5])}, bytes(16)),
        "huge_shape": safetensors({"a": entry(0, 16, [1 << 62, 1 << 62])}, bytes(16)),
        "zero_times_huge": safetensors({"a": entry(0, 0, [0, 1 << 62])}),
        "negative_shape": safetensors({"a": entry(0, 16, [-2, -2])}, bytes(16)),
        "float_shape": safetensors({"a": entry(0, 16, [4.0])}, bytes(16)),
        "true_shape": safetensors({"a": entry(0, 4, [True])}, bytes(4)),
        "many_axes": safetensors({"a": entry(0, 4, [1] * 5000)}, bytes(4)),
        "no_such_dtype": safetensors({"a": entry(0, 16, [4], "os.system")}, bytes(16)),
        "no_offsets": safetensors({"a": {"dtype": "F32", "shape": [4]}}, bytes(16)),
        "no_entry": safetensors({"a": [1, 2]}, bytes(16)),
        "no_table": safetensors(b'[{"a": 1}]'),
        "no_json": safetensors(b'{"a": {dtype'),
        "twice": safetensors(
            b'{"a":' + json.dumps(entry(0, 4)).encode() + b',"a":' + json.dumps(entry(0, 4)).encode() + b"}", bytes(4)
        ),
        "deep": safetensors(b'{"a":' + b"[" * 1_000_000),
        "long_number": safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "many": safetensors(many),
        "wide": safetensors(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"),
        "no_utf8": safetensors(b'{"\xff\xfe": 1}'),
        "name_of_lines": safetensors({"a\nb\r\x1b[2J": entry(0, 1)}, bytes(1)),
        "half": whole[:-8],
        "five_bytes": whole[:5],
        "metadata": safetensors({"__metadata__": [1], "a": entry(0, 16)}, bytes(16)),
    }


def corpus(canary: Path) -> dict[str, bytes]:
    """Name every hostile file, with its content."""
    values = {**code(canary), **bombs(), **tensors()}
    shell = program(call("os", "system", text(f"touch {canary}")))
    return {
        **{f"{name}.pt": weights(value) for name, value in values.items()},
        **{f"legacy_{name}.pt": legacy(program(table(good=GOOD, other=value))) for name, value in tensors().items()},
        **{f"{name}.bin": content for name, content in archives().items()},
        **{
            f"legacy_code_{index}.ckpt": legacy(head=[*LEGACY[:index], shell, *LEGACY[index + 1 :]]) for index in (0, 2)
        },
        "legacy_code_content.ckpt": legacy(content=shell),
        "legacy_code_keys.ckpt": legacy(tail=shell + STORAGES),
        "bare_pickle.ckpt": shell,
        **{f"{name}.safetensors": content for name, content in headers().items()},
    }


def try_all(folder: Path) -> None:
    """Open every file of a folder with little memory, and write a line of JSON on how each went."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    for file in sorted(folder.iterdir()):
        start = time.process_time()
        try:
            told = f"opened: {sorted(open_source(file).names())}"
        except ReverieError as error:
            told = f"refused: {error}"
        except BaseException as error:  # a MemoryError too
            told = f"failed: {type(error).__name__} {error}"
        seconds = time.process_time() - start
        sys.stdout.write(json.dumps({"file": file.name, "told": told, "seconds": seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try_all(Path(sys.argv[1]))
