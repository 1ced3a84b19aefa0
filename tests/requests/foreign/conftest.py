"""Pictures as other programs write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reverie.requests.records import Record, read_record

SIZE = (64, 48)


@pytest.fixture
def read_png(tmp_path: Path) -> Callable[[dict[str, str]], Record]:
    """Write text chunks into a picture of 64 x 48 pixels as a program does, and read the record."""

    def read(chunks: dict[str, str]) -> Record:
        info = PngInfo()
        for name, text in chunks.items():
            info.add_text(name, text)
        Image.new("RGB", SIZE).save(tmp_path / "x.png", pnginfo=info)
        return read_record(tmp_path / "x.png")

    return read
