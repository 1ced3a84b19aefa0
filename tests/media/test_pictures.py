"""Do pictures reach their files whole, with their texts, and come back?"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import grid, open_picture, parameters_text, read_texts, save

TEXTS = {"parameters": "一只熊 a bear\nSteps: 20, Seed: 1", "reverie": '{"request": {"prompt": "\\u4e00"}}'}


@pytest.fixture
def picture() -> Image.Image:
    picture = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    picture.info.update(TEXTS, other="not ours")
    return picture


def test_parameters_text_is_written_as_automatic1111_does() -> None:
    fields = {"Steps": 20, "Sampler": "DPM++ 2M", "Hashes": "a: b, c", "Absent": None, "Size": "128x64"}
    told = parameters_text("a bear\nat night", "red, blue", fields)
    assert told == (
        'a bear\nat night\nNegative prompt: red, blue\nSteps: 20, Sampler: DPM++ 2M, Hashes: "a: b, c", Size: 128x64'
    )
    assert parameters_text("", "", {"Steps": 1}) == "Steps: 1"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "PNG"])
def test_round_trip(picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"bear.{suffix}"
    save(picture, file)
    again = open_picture(file)
    assert again.size == picture.size
    assert read_texts(again) == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    if suffix == "png":
        assert again.tobytes() == picture.tobytes()
        with Image.open(file) as opened:
            assert opened.text == TEXTS


def test_a_picture_without_texts(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        save(Image.new("RGB", (8, 8)), tmp_path / f"plain.{suffix}")
        assert read_texts(open_picture(tmp_path / f"plain.{suffix}")) == {}


def test_refusals(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=r"^cannot write '.*x.bmp': unknown picture format; choose from .png, .jpg"):
        save(picture, tmp_path / "x.bmp")
    with pytest.raises(ReverieError, match=r"^cannot write '.*gone/x.png': no such file or directory$"):
        save(picture, tmp_path / "gone" / "x.png")
    for suffix, width in ((".jpg", 65_501), (".webp", 16_384)):
        with pytest.raises(ReverieError, match=rf"^cannot write '.*x{suffix}': {width}x1 pixels.* write .png$"):
            save(Image.new("L", (width, 1)), tmp_path / f"x{suffix}")
        save(Image.new("L", (width - 1, 1)), tmp_path / f"whole{suffix}")
    with pytest.raises(ReverieError, match=r"^cannot read '.*none.png': no such file or directory$"):
        open_picture(tmp_path / "none.png")
    save(picture, tmp_path / "cut.png")
    for content in (b"no picture", (tmp_path / "cut.png").read_bytes()[:150]):
        (tmp_path / "cut.png").write_bytes(content)
        with pytest.raises(ReverieError, match=r"^cannot read '.*cut.png': not a picture, or damaged$"):
            open_picture(tmp_path / "cut.png")


def test_damage_of_every_kind_gets_one_line(picture: Image.Image, tmp_path: Path) -> None:
    """Pillow raises several kinds of errors, of which few are OSErrors."""
    file = tmp_path / "bear.bmp"
    picture.save(file)
    whole = file.read_bytes()
    for width in (b"\xff\xff\xff\x7f", b"\x00\x00\x01\x00"):
        file.write_bytes(whole[:18] + width + b"\x00\x00\x01\x00" + whole[26:])
        with pytest.raises(ReverieError, match=r"cannot read '.*bear\.bmp': not a picture, or damaged"):
            open_picture(file)


def test_a_failed_save_leaves_the_old_picture(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(picture, tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()

    def full(self: Image.Image, file: Path, *_: object, **__: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ReverieError, match="the disk is full"):
        save(picture, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_grid() -> None:
    colours = ["red", "lime", "blue", "black", "yellow"]
    tiles = [Image.new("RGB", (4, 2), colour) for colour in colours]
    sheet = grid(tiles)
    assert sheet.size == (12, 4)
    assert sheet.getpixel((4, 0)) == (0, 255, 0)
    assert sheet.getpixel((4, 2)) == (255, 255, 0)
    assert sheet.getpixel((11, 3)) == (255, 255, 255)
    assert grid(tiles, columns=1).size == (4, 10)
    with pytest.raises(ReverieError, match="at least one"):
        grid([])
