"""Are two sides compared, limited and drawn as the benchmark says?"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GOAL = "SD 1.5 U-Net step, 256 px"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def measure() -> ModuleType:
    return importlib.import_module("measure")


def test_gain_is_of_the_medians_and_noise_of_single_rounds(measure: ModuleType) -> None:
    row = measure.Row(GOAL, "s", ours=[1.0, 2.0, 4.0], theirs=[3.0, 4.0, 5.0])
    assert row.gain == 2
    assert row.noise == (1.25, 3)
    assert row.goal == 1.9
    alone = measure.Row("alone", ours=[1.0])
    assert (alone.gain, alone.noise, alone.goal) == (None, None, None)


def test_a_process_is_charged_for_its_own_memory_alone(measure: ModuleType) -> None:
    """The rusage of a child starts with what its parent held when it was forked."""
    held = torch.ones(64 << 20)  # 256 MiB
    small = measure.run([sys.executable, "-c", "import time; time.sleep(0.3)"]).peak_mib
    large = measure.run([sys.executable, "-c", "import time; x = b'1' * (96 << 20); time.sleep(0.3)"]).peak_mib
    assert 1 < small < held.nbytes / 2**20 / 4
    assert 90 < large - small < 110


def test_a_process_that_fails_tells_its_last_words(measure: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="no such bear"):
        measure.run([sys.executable, "-c", "raise SystemExit('no such bear')"])


def test_a_limited_process_computes_so_and_says_so(measure: ModuleType, tmp_path: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no x86 processor with AVX2")
    script = tmp_path / "script.py"
    script.write_text("import measure\nmeasure.restrict('avx2')\nprint(measure.machine()['instructions'])\n")
    output = measure.run([sys.executable, str(script)], PYTHONPATH=str(BENCHMARKS)).output
    assert output.split("\n")[-2] == "AVX2 (told so)"


def test_a_plot_joins_runs_and_marks_what_is_ahead(
    measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, plot = importlib.import_module("report"), importlib.import_module("plot")
    ahead = measure.Row(GOAL, "s", [1.0, 1.0], [1.9, 2.1])
    behind = measure.Row("memory", "MiB", [2.0, 2.0], [1.0, 1.0], note="noted")
    files = [
        report.write([measure.Row(GOAL, "s", [1.0], [9.0]), behind], {"cores": "2"}, tmp_path / "first")[1],
        report.write([ahead], {"cores": "2"}, tmp_path / "second")[1],
    ]
    assert report.read(files[1]) == ([ahead], {"cores": "2"})
    file = tmp_path / "plot.png"
    monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, files), "--image", str(file)])
    plot.main()
    table = capsys.readouterr().out
    assert f"| {GOAL} | 1.00 s | 1.00 s | 1.90 s | 2.00 s | 2.00 | 1.90 to 2.10 | 1.90 | peer: diffusers |" in table
    with Image.open(file) as image:
        colours = {colour for _, colour in image.getcolors(maxcolors=1 << 16) or []}
    assert {(59, 125, 216), (216, 125, 59), (192, 24, 24)} <= colours  # ahead, behind, a goal
