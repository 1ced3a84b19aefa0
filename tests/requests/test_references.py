"""Does a request know its pictures again, in JSON and in metadata, and refuse what is none?"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.requests.pictures import ImageToImage
from reverie.requests.references import Picture


def asked(init: object) -> ImageToImage:
    return ImageToImage(prompt="a bear", seed=1, init=init)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 16), "red").save(tmp_path / "init.png")
    return tmp_path / "init.png"


def test_a_picture_is_the_same_however_it_is_given(file: Path) -> None:
    by_path, by_text = asked(file), asked(str(file))
    by_url = ImageToImage.from_json(by_path.to_json())
    by_record = ImageToImage(**json.loads(json.dumps(by_path.recorded())))
    assert by_path == by_text == by_url == by_record == by_path.replace(steps=20)
    assert [request.init.size for request in (by_path, by_url, by_record)] == [(24, 16), (24, 16), None]
    assert {request.init.image().tobytes() for request in (by_path, by_url, by_record)} == {Image.open(file).tobytes()}
    assert by_path.recorded()["init"] == {"path": str(file), "sha256": by_path.init.sha256}
    assert by_path.to_json().count("data:image/png;base64,") == 1
    assert "data" not in repr(by_path)
    with Image.open(file) as opened:
        assert asked(opened).init.image().tobytes() == opened.tobytes()


def test_a_recorded_picture_must_still_be_there(file: Path) -> None:
    record = asked(file).recorded()
    Image.new("RGB", (24, 16), "blue").save(file)
    with pytest.raises(
        ReverieError, match=r"init.png' has changed since \(its SHA-256 was [0-9a-f]{64}\); give the old"
    ):
        ImageToImage(**record).init.image()
    file.unlink()
    with pytest.raises(ReverieError, match=r"^cannot read '.*init.png': no such file"):
        ImageToImage(**record).init.image()
    with pytest.raises(ReverieError, match=r"^a picture given in memory is gone"):
        ImageToImage(**asked(Image.new("L", (8, 8))).recorded()).init.image()


def test_pictures_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16)).save(buffer, "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert asked(tmp_path / "x.jpg").init.size == (16, 24)


@pytest.mark.parametrize("given", ["data:image/png;base64,AAAA", "data:nonsense", "nowhere.png", 3, None, __file__])
def test_refusals(given: object) -> None:
    with pytest.raises(ReverieError) as caught:
        asked(given)
    assert "\n" not in str(caught.value)
    assert "picture" in str(caught.value) or "nowhere.png" in str(caught.value)


def test_other_depths_and_colours_are_brought_to_eight_bits(tmp_path: Path) -> None:
    """A depth map of 16 bits keeps its greys, and what PNG cannot hold is taken all the same."""
    deep = Image.new("I;16", (8, 8), 0x8080)
    deep.save(tmp_path / "depth.png")
    for given in (tmp_path / "depth.png", deep, deep.convert("I")):
        assert asked(given).init.image().convert("RGB").getpixel((0, 0)) == (128, 128, 128)
    printed = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert asked(printed).init.image().getpixel((0, 0)) == printed.convert("RGB").getpixel((0, 0))


def test_transparency_is_known() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    transparent = [asked(image).init.transparent for image in (clear, clear.convert("RGB"), clear.convert("LA"))]
    assert transparent == [True, False, True]
    assert asked(Image.new("RGBA", (8, 8), "red")).init.transparent is False
    assert asked(Image.new("RGBA", (8, 8), (0, 0, 0, 127))).init.transparent is True
    assert asked(Image.new("RGBA", (8, 8), (0, 0, 0, 128))).init.transparent is False  # no mask would paint it
    assert Picture.model_validate({"sha256": "0" * 64, "path": "x"}).transparent is None
