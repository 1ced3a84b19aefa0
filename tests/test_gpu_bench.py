"""Does the benchmark for GPUs work, with the processor in a GPU's place, and say in a line where it cannot?"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the benchmark; torch traces without the checks that the tests put around each function."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    return importlib.import_module("gpu")


def measured(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *parts: str) -> dict[str, dict[str, object]]:
    """Run parts of the benchmark and return its rows by their names and peers."""
    arguments = ["--device", "cpu", "--quick", "--rounds", "2", "--out", str(out), "--parts", *parts]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    assert gpu.main() == 0
    told = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    assert "no figure means anything" in told["machine"]["device"]
    return {f"{row['name']} / {row['peer']}" if row["theirs"] else row["name"]: row for row in told["rows"]}


def test_a_large_batch_and_offloading_are_measured(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = measured(gpu, monkeypatch, tmp_path, "batch", "offload")
    shares = [rows[f"U-Net, batch 16, 64 px, {how} / the peak"]["gain"] for how in ("plain", "compiled")]
    assert all(isinstance(share, float) and share > 0 for share in shares)  # of a rate that a busy machine may lower
    offloads = ("no offload", "offload networks", "offload blocks")
    assert all(len(rows[f"SD 1.5, 64 px, 3 steps, {how}"]["ours"]) == 2 for how in offloads)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers, and of torch about what it traces there
def test_pictures_are_measured_beside_diffusers(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = measured(gpu, monkeypatch, tmp_path, "picture")
    title = "SD 1.5 prompt to picture, loaded, 64 px, 3 steps"
    wanted = ("plain / diffusers, eager", "compiled / diffusers, max-autotune", "compiled / the goal")
    assert set(rows) == {f"{title}, {how}" for how in wanted}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no CUDA device here"),
        (("--device", "cpu"), "add --quick"),
        (("--device", "tpu", "--quick"), "choose from cuda, cpu"),
    ],
)
def test_where_it_cannot_it_says_so(
    gpu: ModuleType,
    arguments: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    assert gpu.main() == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
