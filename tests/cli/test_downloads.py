"""Is fetching a model shown on stderr, and left alone where there is nothing to fetch?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reverie.checkpoints import hub
from reverie.cli.options import ModelOptions
from reverie.cli.progress import fetch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str | None]]:
    """Put a hub in place that sends two files, and remember what it was asked for."""
    calls: list[tuple[str, str | None, str | None]] = []

    def find(name: str, *, revision: str | None, variant: str | None, report: Any) -> Path:
        calls.append((name, revision, variant))
        report(hub.Download("unet/config.json", 0, 2_000_000))
        report(hub.Download("unet/model.safetensors", 2_000_000, 2_000_000))
        return Path()

    monkeypatch.setattr(hub, "find", find)
    return calls


def test_a_name_is_fetched(asked: list[tuple[str, str | None, str | None]], capsys: pytest.CaptureFixture[str]) -> None:
    fetch(ModelOptions(model="owner/name", revision="v2", variant="fp16"))
    assert asked == [("owner/name", "v2", "fp16")]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "fetching owner/name: unet/config.json, 0 of 2 MB\n"


@pytest.mark.parametrize("model", [None, ".", "model.safetensors", "/no/such/place"])
def test_nothing_to_fetch(asked: list[tuple[str, str | None, str | None]], model: str | None) -> None:
    fetch(ModelOptions(model=model))
    assert asked == []
