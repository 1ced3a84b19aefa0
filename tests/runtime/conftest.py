"""Networks small enough for tests are packed throughout, though theirs would gain nothing."""

from __future__ import annotations

import pytest

from reverie.runtime import layers, transform


@pytest.fixture(autouse=True)
def everything_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack products of any width but the narrowest, and all convolutions."""
    monkeypatch.setattr(transform, "WIDE", 16)
    monkeypatch.setattr(layers, "SMALL", 0)
