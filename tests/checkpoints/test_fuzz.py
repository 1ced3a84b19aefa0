"""Do changed files leave the readers on their feet? A small part of what benchmarks/fuzz.py tries, always the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def test_changed_files_are_read_or_refused(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = fuzz  # where dataclasses look for it
    spec.loader.exec_module(fuzz)
    outcome = fuzz.fuzz(tmp_path, seed=0, seconds=60, limit=300)
    assert outcome.tried == 300
    assert min(outcome.opened, outcome.refused) > 10
