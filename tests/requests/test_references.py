"""Requests know their files again, in JSON and in metadata, and name what a policy allows alone."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.jobs.replay import supply
from reverie.media import sound
from reverie.media.sound import Sound
from reverie.requests.base import SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.parts import ControlInput, Refiner
from reverie.requests.pictures import ImageToImage, Inpaint, TextToImage
from reverie.requests.records import read_own, texts
from reverie.requests.references import AllowedFolders, Picture, looking_in, references, resolving


def asked(init: object) -> ImageToImage:
    return ImageToImage(prompt="a bear", seed=1, init=init)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 16), "red").save(tmp_path / "init.png")
    return tmp_path / "init.png"


def test_a_picture_is_the_same_however_it_is_given(file: Path) -> None:
    by_path, by_text = asked(file), asked(str(file))
    by_url = ImageToImage.from_json(by_path.to_json())
    with looking_in(file.parent):
        by_record = ImageToImage(**json.loads(json.dumps(by_path.to_record())))
    assert by_path == by_text == by_url == by_record == by_path.replace(steps=20)
    assert [request.init.size for request in (by_path, by_url, by_record)] == [(24, 16)] * 3
    assert {request.init.image().tobytes() for request in (by_path, by_url, by_record)} == {Image.open(file).tobytes()}
    assert by_path.to_record()["init"] == {"name": "init.png", "sha256": by_path.init.sha256}
    assert by_path.to_json().count("data:image/png;name=init.png;base64,") == 1
    assert by_url.to_record() == by_path.to_record()
    assert "data" not in repr(by_path)
    with Image.open(file) as opened:
        assert asked(opened).init.image().tobytes() == opened.tobytes()
    odd = asked(file.rename(file.with_name("a,b;c=d é%2F.png")))
    assert ImageToImage.from_json(odd.to_json()).to_record() == odd.to_record()


def test_a_recorded_picture_must_still_be_there(file: Path) -> None:
    record = asked(file).to_record()
    Image.new("RGB", (24, 16), "blue").save(file)
    with looking_in(file.parent):
        changed = ImageToImage(**record)
    assert changed.init.size is None
    with pytest.raises(ReverieError, match=r"picture 'init.png' has changed since \(its SHA-256 was [0-9a-f]{64}\)"):
        changed.init.image()
    file.unlink()
    with pytest.raises(ReverieError, match=r"^the picture 'init.png' is not here .*; give it with `init`"):
        supply(ImageToImage(**record), {})
    with pytest.raises(ReverieError, match=r"^a picture given in memory is gone"):
        ImageToImage(**asked(Image.new("L", (8, 8))).to_record()).init.image()


def test_what_is_given_for_a_record_may_be_another_file_and_is_said(file: Path, tmp_path: Path) -> None:
    lost = ImageToImage(**asked(file).to_record())
    file.rename(tmp_path / "moved.png")
    assert supply(lost, {"init": tmp_path / "moved.png"}) == (lost, ())
    Image.new("RGB", (24, 16), "blue").save(tmp_path / "other.png")
    found, notes = supply(lost, {"init": tmp_path / "other.png"})
    assert found.init.image().getpixel((0, 0)) == (0, 0, 255)
    assert [note.startswith("init is another file than it was made from, 'init.png'") for note in notes] == [True]
    with pytest.raises(ReverieError, match="made without mask; leave out `mask`"):
        supply(lost, {"mask": tmp_path / "other.png"})


def test_metadata_names_no_folder(file: Path, tmp_path: Path) -> None:
    """Whatever kind of file a request names, neither its folder nor the user's name is written."""
    sound.write(Sound(torch.zeros(1, 800), 8000), tmp_path / "song.wav")
    (tmp_path / "net").mkdir()
    control = ControlInput(model=str(tmp_path / "net"), image=file)
    requests = [
        TextToImage(seed=1, guidance=2, controls=(control,), refiner=Refiner(model=str(tmp_path / "net"))),
        Inpaint(seed=1, guidance=2, init=file, mask=file),
        Animation(seed=1, keyframes=({"prompt": "a", "image": file}, "b")),
        Animation(seed=1, keyframes=("a", "b"), init_video=file.parent),
        Animation(seed=1, keyframes=("a", "b"), audio=tmp_path / "song.wav"),
        Music(seed=1, init=tmp_path / "song.wav", mask=file),
    ]
    for request in requests:
        assert str(tmp_path.parent) not in json.dumps(texts(request, "m"))
        with looking_in(tmp_path):
            record = read_own(texts(request, "m"))
        assert record is not None
        assert record.request.to_record() == request.to_record()
    assert Film(model=str(tmp_path / "net")).to_record()["model"] == "net"


def test_a_server_allows_names_inside_its_folders_alone(file: Path, tmp_path: Path) -> None:
    """A file that is missing and one that is forbidden get one answer."""
    (tmp_path / "shared").mkdir()
    file.rename(tmp_path / "shared/init.png")
    (tmp_path / "secret.png").write_bytes((tmp_path / "shared/init.png").read_bytes())
    answers = []
    with resolving(AllowedFolders({"picture": [tmp_path / "shared"]})):
        assert asked("init.png").init.size == (24, 16)
        assert asked(asked("init.png").init.model_dump()).init.size == (24, 16)  # a data URL
        forbidden = ["../secret.png", str(tmp_path / "secret.png"), "..", ".", "missing.png", "a\0b", "/etc/passwd"]
        for name in forbidden:
            with pytest.raises(ReverieError) as caught:
                asked(name)
            answers.append(str(caught.value).replace(name, "NAME"))
        with pytest.raises(ReverieError, match=r"there is no film 'init.png' here"):
            Animation(keyframes=("a",), init_video="init.png")
        with pytest.raises(ReverieError, match="there is no model"):
            Refiner(model="owner/name")
        for adapters in ({"loras": ["../secret.safetensors:0.5"]}, {"embeddings": ["x.pt"]}, {"folders": ["/"]}):
            with pytest.raises(ReverieError, match=r"there is no (lora|embedding|folder) '.*' here"):
                TextToImage.of(adapters)
        record = {"name": str(tmp_path / "secret.png"), "sha256": asked("init.png").init.sha256}
        assert asked(record).init.size is None
    assert set(answers) == {"there is no picture 'NAME' here; give a name that is, or the content as a data URL"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Animation, {"keyframes": ("a", "b"), "audio": {"path": "SECRET", "name": "x.wav", "sha256": "0"}}),
        (Animation, {"keyframes": ("a", "b"), "init_video": {"path": "SECRET", "name": "x.mp4", "sha256": "0"}}),
        (ImageToImage, {"init": {"path": "SECRET", "name": "x.png", "sha256": "0", "data": "no picture"}}),
        (Music, {"init": {"path": "SECRET", "name": "x.wav", "sha256": "0", "held": "no sound"}}),
    ],
)
def test_no_field_of_a_reference_leads_past_the_folders(
    kind: type[SampledRequest], fields: dict[str, Any], tmp_path: Path
) -> None:
    """Fields that look like those of a reference which was resolved already, as JSON may hold them."""
    (tmp_path / "secret.wav").write_bytes(b"secret")
    given = json.loads(json.dumps(fields).replace("SECRET", str(tmp_path / "secret.wav")))
    with resolving(AllowedFolders({})):
        for _, found in references(kind.of(given)):
            assert not found.is_here
            assert found.path is None


def test_a_server_finds_adapters_by_name(tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").touch()
    with resolving(AllowedFolders({"lora": [tmp_path]})):
        request = TextToImage(loras=("ink.safetensors:0.5:1",))
        assert request.loras == (f"{tmp_path}/ink.safetensors:0.5:1",)
        assert request.replace(steps=3).loras == request.loras
    assert request.to_record()["loras"] == ["ink.safetensors:0.5:1"]


def test_a_sound_may_be_a_data_url(tmp_path: Path) -> None:
    sound.write(Sound(torch.rand(1, 800) / 2, 8000), tmp_path / "song.wav")
    url = "data:audio/wav;base64," + base64.b64encode((tmp_path / "song.wav").read_bytes()).decode()
    assert Music(seed=1, init=url) == Music(seed=1, init=tmp_path / "song.wav")


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
    assert Picture.model_validate({"sha256": "0" * 64, "name": "x"}).transparent is None
