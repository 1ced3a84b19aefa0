"""Does --compile reach the model, and is it refused in a line where it makes no sense?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import reverie
from reverie.cli.app import run
from reverie.errors import ReverieError


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused, and return the one line that it says."""
    assert run(("image", "a bear", "--compile", *arguments)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_it_is_refused_where_it_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert "on the CPU packed weights are quicker" in refusal(capsys, "--device", "cpu")
    assert "offload and compile exclude each other" in refusal(capsys, "--device", "cpu", "--offload", "blocks")
    assert "int8 and compile exclude each other" in refusal(capsys, "--device", "cpu", "--no-fast", "--int8")
    assert "leave out --compile" in refusal(capsys, "--device", "cpu", "--no-fast", "--time-budget", "30s")


def test_it_reaches_the_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: str | None, **options: Any) -> SimpleNamespace:
        raise ReverieError(f"compile is {options['compile']}")

    monkeypatch.setattr(reverie, "load", load, raising=False)
    assert "compile is True" in refusal(capsys)
    assert run(("image", "a bear")) == 2
    assert "compile is False" in capsys.readouterr().err
