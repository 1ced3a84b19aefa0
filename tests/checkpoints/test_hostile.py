"""Can a file of weights run code, or take the machine down? The corpus of hostile.py is opened in one child process."""

from __future__ import annotations

import importlib.util
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from reverie.checkpoints.weights import open_source

SCRIPT = Path(__file__).with_name("hostile.py")
SECONDS = 5.0  # of the processor: other work on the machine does not count


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    """Import the corpus, which is no module of ours."""
    spec = importlib.util.spec_from_file_location("hostile", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary") / "sang"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, canary: Path, hostile: ModuleType) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in hostile.corpus(canary).items():
        (folder / name).write_bytes(content)
    child = subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=False, capture_output=True, text=True)
    found = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"after {found[-1:]}: {child.stderr}"
    assert len(found) == len(list(folder.iterdir())) > 150
    return {result["file"]: result for result in found}


def test_none_runs_code(results: dict[str, Any], canary: Path) -> None:
    assert results
    assert not canary.exists()


def test_each_is_refused_in_one_line(results: dict[str, dict[str, Any]]) -> None:
    assert {
        name: result["told"] for name, result in results.items() if not result["told"].startswith("refused: ")
    } == {}
    assert {name for name, result in results.items() if len(result["told"].splitlines()) != 1} == set()
    assert max(len(result["told"]) for result in results.values()) < 600


def test_each_is_refused_soon(results: dict[str, dict[str, Any]]) -> None:
    slow = {name: result["seconds"] for name, result in results.items() if result["seconds"] > SECONDS}
    assert slow == {}


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("os_system.pt", "wants to run 'os.system', which has no place among weights and was not run"),
        ("inst.pt", "wants to run 'os.system'"),
        ("memo_confusion.pt", "wants to run 'os.system'"),
        ("callback_state.pt", "wants to run 'os.system'"),
        ("negative_stride.pt", "negative"),
        ("up.bin", "points out of the archive"),
        ("bomb.bin", "compressed"),
        ("zip_half.bin", "is damaged or cut short"),
        ("ten_gigabytes.safetensors", "its header claims 10737418240 bytes; at most 10485760 are read"),
        ("overlapping.safetensors", "'b' overlaps the tensor before it"),
        ("out_of_range.safetensors", "outside of the 16 bytes of data"),
        ("wrong_size.safetensors", "'a' has 16 bytes, not the 20 of its shape"),
    ],
)
def test_what_is_told(results: dict[str, dict[str, Any]], file: str, told: str) -> None:
    assert told in results[file]["told"]


def test_the_canary_would_sing(tmp_path: Path, hostile: ModuleType) -> None:
    """Python's own unpickler does run the corpus' code: the test is of something."""
    canary = tmp_path / "sang"
    for name in ("os_system", "eval", "getattr", "resolve_name", "nested_pickle", "inst", "obj", "stack_global"):
        pickle.loads(hostile.program(hostile.code(canary)[name]))
        assert canary.exists(), name
        canary.unlink()


def test_other_entries_are_never_opened(tmp_path: Path, hostile: ModuleType) -> None:
    """A pickle of code that no tensor refers to stays shut: in a zip, behind the end, or as bytes."""
    canary = tmp_path / "sang"
    shell = hostile.program(hostile.call("os", "system", hostile.text(f"touch {canary}")))
    entries = {"archive/data/0": bytes(16), "archive/code/evil.pkl": shell}
    inside = b"B" + struct.pack("<I", len(shell)) + shell
    content = hostile.program(hostile.table(good=hostile.GOOD, nested=inside))
    (tmp_path / "x.pt").write_bytes(hostile.zipped(content + shell, entries))
    source = open_source(tmp_path / "x.pt")
    assert list(source.names()) == ["good"]
    assert source.tensor("good").tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert not canary.exists()
