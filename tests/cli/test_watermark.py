"""Does the command line write a watermark, read it, and refuse in one line?"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from reverie.cli.app import BAD_INPUT, run
from reverie.media.pictures import open_picture, save


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Write a picture with metadata."""
    drawn = Image.radial_gradient("L").convert("RGB")
    drawn.info["parameters"] = "a bear"
    save(drawn, tmp_path / "bear.png")
    return tmp_path / "bear.png"


def test_written_and_read(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marked = picture.with_name("marked.jpg")
    assert run(["watermark", "write", str(picture), "-o", str(marked), "--text", "drawn by a machine"]) == 0
    assert run(["watermark", "read", str(marked)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(marked), "drawn by a machine"]
    assert open_picture(marked).info["parameters"] == "a bear"


def test_refusals(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["read", str(picture)], "holds no watermark"),
        (["read", str(picture.with_name("nothing.png"))], "cannot read"),
        (["write", str(picture), "-o", str(picture.with_name("x.gif"))], "names no picture format"),
        (["write", str(picture), "-o", str(picture.with_name("x.png")), "--text", "x" * 61], "61 bytes does not fit"),
    ):
        assert run(["watermark", *arguments]) == BAD_INPUT
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) == 1
