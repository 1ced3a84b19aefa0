"""Networks small enough for tests are packed throughout, though theirs would gain nothing."""

from __future__ import annotations

import pytest

from reverie.runtime import transform


@pytest.fixture(autouse=True)
def everything_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack products of any width but the narrowest."""
    monkeypatch.setattr(transform, "WIDE", 16)
