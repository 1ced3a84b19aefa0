"""Does a process let go of a file's pages, and of nothing that was written?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.checkpoints.weights import open_source
from reverie.runtime import kernels, pack
from reverie.runtime.kernels import let_go, trim

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells which pages are a file's")
SIDE = 512  # 1 MiB in float32


def resident(tensor: Tensor) -> int:
    """Count a tensor's resident bytes, as the system accounts for its map."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= tensor.data_ptr() < end
        elif inside and first == "Rss:":
            total += int(rest[0]) * 1024
    return total


@pytest.fixture
def values() -> Tensor:
    return torch.arange(SIDE * SIDE, dtype=torch.float32).reshape(SIDE, SIDE)


@pytest.fixture
def mapped(values: Tensor, tmp_path: Path) -> Tensor:
    save_file({"weight": values}, tmp_path / "weights.safetensors")
    return open_source(tmp_path / "weights.safetensors").tensor("weight")


@linux
def test_what_was_read_is_let_go_of_and_read_anew(mapped: Tensor, values: Tensor) -> None:
    assert torch.equal(mapped, values)
    before = resident(mapped)
    let_go(mapped)
    assert resident(mapped) < before - 0.9 * mapped.nbytes
    assert torch.equal(mapped, values)


@pytest.mark.parametrize("touched", [slice(0, 1), slice(SIDE // 2, None), slice(None)])
def test_what_was_written_stays(mapped: Tensor, values: Tensor, touched: slice) -> None:
    """As LoRA writes into a mapped weight."""
    mapped[touched] += 1
    let_go(mapped)
    values[touched] += 1
    assert torch.equal(mapped, values)


def test_memory_of_no_file_stays(values: Tensor) -> None:
    known = values.clone()
    shared = values.clone().share_memory_()
    for tensor in (values, shared, values.T, values[:, 3:], values[:0], torch.empty(SIDE, device="meta")):
        let_go(tensor)
    trim()
    assert torch.equal(values, known)
    assert torch.equal(shared, known)


def test_nothing_happens_where_the_system_does_not_tell(
    mapped: Tensor, values: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torch.equal(mapped, values)
    (tmp_path / "short").write_bytes(b"")
    for told in ("short", "missing"):
        monkeypatch.setattr(kernels, "PAGEMAP", tmp_path / told)
        let_go(mapped)
    assert torch.equal(mapped, values)
    monkeypatch.setattr(kernels, "_libc", lambda: None)
    let_go(mapped)
    trim()


@linux
@torch.no_grad()
def test_a_packed_layer_keeps_no_page_of_its_file(mapped: Tensor, values: Tensor) -> None:
    layer = nn.Linear(SIDE, SIDE)
    layer.weight = nn.Parameter(mapped)
    x = torch.ones(2, SIDE)
    pack(nn.Sequential(layer))
    y = layer(x)
    assert resident(mapped) < 0.1 * mapped.nbytes + 64 * 1024
    assert (layer(x) == y).all()
    assert torch.equal(layer.weight, values)
