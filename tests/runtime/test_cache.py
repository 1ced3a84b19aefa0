"""Do packed weights from a file compute what those just packed do, and does no damage or want of a disk matter?"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from reverie import system
from reverie.cli.app import run
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.runtime import cache, cast_to, extension, int8, kernels, pack, quantize, unpack, winograd
from reverie.runtime.cache import Kept, machine_folder, make_room, read, store, write
from reverie.runtime.kernels import Panels, pack_panels
from reverie.runtime.layers import PackedLayer

from .test_exact import UNET, error, given, numbers

pytestmark = pytest.mark.skipif(not kernels.mappable(), reason="this build of torch maps no packed weights")
Build = Callable[[], UNet]


@dataclass(frozen=True)
class Way:
    """Let networks compute fast with what a folder holds; functions of a module pack, and results are so near."""

    take: Callable[..., nn.Module]
    module: ModuleType
    packing: tuple[str, ...]
    near: float


fused = pytest.mark.skipif(not int8.fuses(), reason="no extension that multiplies 8-bit numbers was compiled")


@pytest.fixture(
    params=[
        Way(pack, kernels, ("pack_conv2d", "pack_linear"), 1e-6),
        pytest.param(Way(quantize, int8, ("pack_panels",), 0.02), marks=fused),
    ],
    ids=["float32", "int8"],
)
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


class Now:
    """Be a queue whose items are written at once."""

    def __init__(self) -> None:
        self.stored: list[bool] = []

    def put(self, item: tuple[Path, list[Kept]]) -> None:
        self.stored.append(store(*item))


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Now:
    now = Now()
    monkeypatch.setattr(cache, "_queue", lambda: now)
    return now


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build the same network each time, whose convolutions are direct: Winograd's pack nothing."""
    monkeypatch.setattr(winograd, "wins", lambda *shape: False)

    def make() -> UNet:
        torch.manual_seed(0)
        return UNet(UNET).eval()

    return make


@torch.no_grad()
def compute(network: UNet) -> Tensor:
    return network(*given())


def packing(way: Way, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Return a list that comes to hold the shape of each weight that is packed from now on."""
    shapes: list[torch.Size] = []
    for name in way.packing:
        plain = getattr(way.module, name)
        monkeypatch.setattr(
            way.module, name, lambda weight, *rest, plain=plain: shapes.append(weight.shape) or plain(weight, *rest)
        )
    return shapes


def test_a_second_process_packs_nothing_and_computes_the_same_to_the_bit(
    way: Way, build: Build, queue: Now, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = way.take(build())
    plainly, state = compute(alone), unpack(alone).state_dict()
    first = way.take(build(), tmp_path / "model")
    assert torch.equal(compute(first), plainly)
    assert queue.stored
    assert all(queue.stored)
    assert torch.equal(compute(first), plainly), "mapped in place of what was packed"
    count, second, shapes = len(queue.stored), way.take(build(), tmp_path / "model"), packing(way, monkeypatch)
    assert torch.equal(compute(second), plainly)
    assert len(queue.stored) == count
    assert not shapes
    for network in (first, second):
        assert all(torch.equal(tensor, state[name]) for name, tensor in unpack(network).state_dict().items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:-60] + bytes([content[-60] ^ 1]) + content[-59:],
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: bytes(cache.PAGE) + content[cache.PAGE :],
    ],
    ids=["half", "cut", "longer", "table", "empty", "zeros", "bit", "page"],
)
def test_a_damaged_file_is_written_anew(
    damage: Callable[[bytes], bytes], way: Way, build: Build, queue: Now, tmp_path: Path
) -> None:
    plainly = compute(way.take(build(), tmp_path / "model"))
    file = sorted((tmp_path / "model").iterdir())[0]
    content = file.read_bytes()
    file.unlink()  # what is mapped of it stays
    file.write_bytes(damage(content))
    assert read(file) is None
    assert torch.equal(compute(way.take(build(), tmp_path / "model")), plainly)
    assert file.read_bytes() == content


def test_a_file_is_added_up_once_each_time_the_system_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []
    add_up = cache.total
    write(tmp_path / "one", [kernels.pack_linear(torch.randn(16, 16))])
    monkeypatch.setattr(cache, "total", lambda memory: summed.append(len(memory)) or add_up(memory))
    for started, again in (("a", 1), ("a", 0), ("b", 1)):
        (tmp_path / "boot").write_text(started)
        monkeypatch.setattr(cache, "BOOT", tmp_path / "boot")
        cache._mark.cache_clear()
        summed.clear()
        assert read(tmp_path / "one") is not None
        assert len(summed) == again
    monkeypatch.undo()
    cache._mark.cache_clear()
    assert cache.total(memoryview(bytearray(b"\x01" + bytes(7) + b"\x02"))) == 3


@torch.no_grad()
def test_a_weight_that_was_changed_is_neither_kept_nor_looked_for(way: Way, queue: Now, tmp_path: Path) -> None:
    layer, x = nn.Linear(32, 32), numbers(3, 32)
    before = layer.weight.clone()
    (packed,) = way.take(nn.Sequential(layer), tmp_path / "model")
    packed(x)
    for change in (
        lambda: packed.weight.mul_(2),
        lambda: setattr(packed, "weight", nn.Parameter(2 * before)),
        lambda: packed.load_state_dict({"weight": 2 * before, "bias": packed.bias}),
    ):
        packed.weight = nn.Parameter(before.clone())
        cache.remember(nn.Sequential(packed).named_parameters(), tmp_path / "model")
        change()
        assert error(packed(x), x @ (2 * before).T + packed.bias) < way.near
    assert len(queue.stored) == 1


def test_weights_of_another_dtype_are_kept_without_being_made_plain(
    way: Way, build: Build, queue: Now, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_in_half() -> UNet:
        network = build().half()
        cast_to(network, torch.float32)
        return network

    plainly = compute(way.take(build().half().float()))
    assert torch.equal(compute(way.take(read_in_half(), tmp_path / "model")), plainly)
    assert queue.stored
    assert all(queue.stored)
    shapes = packing(way, monkeypatch)
    again = way.take(read_in_half(), tmp_path / "model")
    assert torch.equal(compute(again), plainly)
    assert shapes == []
    assert not any(
        torch.is_tensor(weight)
        for layer in again.modules()
        if isinstance(layer, PackedLayer)
        for weight in [layer._parameters["weight"]]
    )


def test_where_nothing_can_be_written_all_is_as_without(way: Way, build: Build, queue: Now, tmp_path: Path) -> None:
    (tmp_path / "no-folder").write_text("")
    assert torch.equal(compute(way.take(build(), tmp_path / "no-folder" / "model")), compute(way.take(build())))
    assert queue.stored
    assert not any(queue.stored)


def test_the_thread_writes_behind(way: Way, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_queue", functools.cache(cache._queue.__wrapped__))
    others, queue = set(threading.enumerate()), cache._queue()
    (thread,) = set(threading.enumerate()) - others
    plainly, network = compute(way.take(build())), way.take(build(), tmp_path / "model")
    assert torch.equal(compute(network), plainly)
    queue.put(None)
    thread.join()
    assert list((tmp_path / "model").iterdir())
    assert torch.equal(compute(network), plainly), "mapped in place of what was packed"


@torch.no_grad()
def test_what_a_layer_holds_is_mapped_once_it_is_written(way: Way, queue: Now, tmp_path: Path) -> None:
    (layer,) = way.take(nn.Sequential(nn.Linear(256, 256)), tmp_path / "model")
    layer(numbers(3, 256))
    (part,) = layer.store.parts
    start, size = memory_of(part)
    maps = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    files = {name for span, *_, name in maps if int(span.split("-")[0], 16) <= start < int(span.split("-")[1], 16)}
    assert [Path(name).parent for name in files] == [tmp_path / "model"]
    assert size <= Path(*files).stat().st_size


def memory_of(part: Kept) -> tuple[int, int]:
    """Return where the memory of a packed weight starts, and its size in bytes."""
    memory, _ = kernels.memory(part)
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr(), len(memory)


@fused
@torch.no_grad()
def test_panels_are_for_those_alone_who_multiply_by_them(
    build: Build, queue: Now, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute(quantize(build(), tmp_path / "model"))
    count = len(queue.stored)
    monkeypatch.setattr(extension, "library", lambda: None)
    assert torch.equal(compute(quantize(build(), tmp_path / "model")), compute(quantize(build())))
    assert len(queue.stored) == count, "what oneDNN packed is not kept"


@fused
def test_panels_take_a_memory_of_their_size_alone() -> None:
    panels = pack_panels(numbers(70, 18, 3, 3))
    same = Panels.over(panels.held, panels.shape, panels.dtype)
    assert torch.equal(same.to_dense(), panels.to_dense())
    assert torch.equal(same.totals, panels.packed.int().sum((1, 2, 4)).flatten())
    for held in (panels.held[:-1], torch.cat([panels.held, panels.held])):
        with pytest.raises(RuntimeError):
            Panels.over(held, panels.shape, panels.dtype)


ENDING = """
import sys
from pathlib import Path
import torch
from reverie.runtime import cache, kernels
adding, large = cache.total, torch.ones(2**18)
cache.total = lambda memory: [large.sum() for _ in range(2000)] and adding(memory)
for name in ("first", "second"):
    cache._queue().put((Path(sys.argv[1], name), [kernels.pack_linear(torch.ones(256, 256))]))
while not Path(sys.argv[1]).exists():
    pass
"""


def test_a_process_that_ends_finishes_one_file_and_leaves_the_rest(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, str(tmp_path / "model")], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [one.name for one in (tmp_path / "model").iterdir()] == ["first"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that share what is packed")
def test_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    weight = torch.randn(256, 256)
    file, packed = tmp_path / "model" / "weight", [kernels.pack_linear(weight)]
    file.parent.mkdir()
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=lambda: [write(file, packed) for _ in range(10)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        held = read(file)
        assert held is None or torch.equal(kernels.unpack(held[0]), weight)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [one.name for one in file.parent.iterdir()] == ["weight"]
    (held,) = read(file) or []
    assert torch.equal(kernels.unpack(held), weight)


def test_room_is_made_by_removing_what_was_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in enumerate(("old", "older", "own", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(100))
        os.utime(tmp_path / name, (place, (0, -9, -5, 9)[place] + 100))
    monkeypatch.setenv("REVERIE_PACKED_GB", "4e-7")
    monkeypatch.setattr(cache, "SPARE", 0)
    assert make_room(tmp_path / "own", 50)
    assert {one.name for one in tmp_path.iterdir()} == {"old", "own", "new"}
    assert make_room(tmp_path / "own", 300)
    assert not make_room(tmp_path / "own", 301), "one model alone is too large"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(cache, "SPARE", 950)
    assert not make_room(tmp_path / "own", 51)
    assert make_room(tmp_path / "own", 50)
    monkeypatch.setenv("REVERIE_PACKED_GB", "0")
    assert not make_room(tmp_path / "own", 1)


def test_a_folder_is_for_files_as_they_are_and_one_kind_of_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    before = machine_folder("a/b [12]", [file], torch.float32)
    assert before.name.startswith("a_b__12_-")
    assert machine_folder("a/b [12]", [file], torch.float32) == before
    assert machine_folder("a/b [12]", [file], torch.bfloat16) != before
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert machine_folder("a/b [12]", [file], torch.float32) != before
    monkeypatch.undo()
    os.utime(file, ns=(0, 0))
    assert machine_folder("a/b [12]", [file], torch.float32) != before


def test_large_models_are_kept_and_the_command_shows_and_clears_them(
    tiny: Pipeline, queue: Now, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    tiny.save(tmp_path / "tiny")

    def draw() -> Tensor:
        model = system.load(tmp_path / "tiny", device="cpu")
        conditioning = model.encode_prompt(["a bear"])
        with torch.no_grad():
            return model.network(conditioning)(given(rows=1)[0], torch.tensor([500.0]))

    plainly = draw()
    assert not (tmp_path / "cache").exists(), "small ones are not kept"
    monkeypatch.setattr(system, "KEPT_FROM", 0)
    for _ in range(2):
        assert torch.equal(draw(), plainly)
    (folder,) = (tmp_path / "cache" / "packed").iterdir()
    assert folder.name.startswith("tiny__")
    assert run(["cache"]) == 0
    assert f"packed/{folder.name}" in capsys.readouterr().out
    assert run(["cache", "--clear", "no such"]) == 2
    assert f"packed/{folder.name}" in capsys.readouterr().err
    assert run(["cache", "--clear", f"packed/{folder.name}"]) == 0
    assert not folder.exists()
    assert run(["cache", "--clear", "all"]) == 0
