"""Vector drawings stand where the font's bitmaps stand, and take their place only where they are the same design."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reverie.corpora import drawings
from reverie.errors import ReverieError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give drawings in which an apple is a red square that fills its box."""
    red = {"body": '<path fill="#f00" d="M0 0h128v128H0z"/>'}
    (tmp_path / "icons.json").write_text(json.dumps({"icons": {"apple": red}, "aliases": {}}))
    (tmp_path / "chars.json").write_text(json.dumps({f"{ord('🍎'):x}": "apple", f"{ord('🦓'):x}": "apple"}))
    monkeypatch.setattr(drawings, "FOLDER", tmp_path)
    drawings._icons.cache_clear()
    drawings.drawing.cache_clear()
    yield tmp_path
    drawings._icons.cache_clear()
    drawings.drawing.cache_clear()


def test_a_drawing_has_the_margin_of_the_fonts_bitmap(folder: Path) -> None:
    pytest.importorskip("resvg_py")
    pixels = drawings.drawing("🍎", 2 * drawings.STRIKE)  # two pixels a unit: a margin of eight
    expected = np.zeros((272, 272, 4), np.float32)
    expected[8:-8, 8:-8] = (255, 0, 0, 1)
    assert np.array_equal(pixels, expected)


def test_what_was_redrawn_or_has_no_drawing_is_the_fonts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "bitmap", lambda emoji, size: np.full((size, size, 4), ord(emoji)))
    assert drawings.drawing("🦓", 8)[0, 0, 0] == ord("🦓")
    assert drawings.drawing("🐻", 8)[0, 0, 0] == ord("🐻")


def test_missing_drawings_are_told(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "FOLDER", tmp_path / "nothing")
    with pytest.raises(ReverieError, match="npm pack"):
        drawings.drawing("🍎", 8)
