"""`reverie.Client` has the methods of a loaded model, and gives what that gives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import reverie
from reverie.media.video import write
from reverie.pipeline import Pipeline
from reverie.requests.records import from_metadata

OWN: dict[str, Any] = {"seed": 7, "steps": 2}


@pytest.fixture
def remote(url: str) -> Iterator[reverie.Client]:
    with reverie.Client(url, token="secret") as remote:
        yield remote


@pytest.fixture(scope="module")
def local(model_folder: Path) -> Pipeline:
    return reverie.load(model_folder / "tiny")


def test_pictures_are_those_of_the_model(remote: reverie.Client, local: Pipeline) -> None:
    red = Image.new("RGB", (32, 32), "red")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    pairs = [
        (remote.text_to_image(["a bear", "an apple"], **OWN), local.text_to_image(["a bear", "an apple"], **OWN)),
        (remote.image_to_image("a bear", red, **OWN), local.image_to_image("a bear", red, **OWN)),
        (remote.inpaint("a bear", red, mask, **OWN), local.inpaint("a bear", red, mask, **OWN)),
        (remote.outpaint("a bear", red, left=8, **OWN), local.outpaint("a bear", red, left=8, **OWN)),
    ]
    for ours, theirs in pairs:
        assert [one.tobytes() for one in ours] == [one.tobytes() for one in theirs]
        assert from_metadata(ours[0]) == from_metadata(theirs[0])


def test_files_are_recorded_by_the_names_that_they_have_here(
    remote: reverie.Client, local: Pipeline, tmp_path: Path
) -> None:
    for name, colour in (("bear.png", "red"), ("hat.png", "white")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    asked = reverie.Inpaint(init=tmp_path / "bear.png", mask=tmp_path / "hat.png", mask_blur=0, **OWN)
    ours, theirs = (from_metadata(system.draw(asked)[0]).to_record() for system in (remote, local))
    assert ours["mask"]["name"] == "hat.png"
    assert ours["init"] == theirs["init"]
    assert ours["mask"] == theirs["mask"]


def test_events_are_listened_to(remote: reverie.Client) -> None:
    heard: list[dict[str, Any]] = []
    remote.listen = heard.append
    remote.text_to_image("a bear", **OWN | {"steps": 100})
    assert [heard[0]["type"], heard[-1]["type"]] == ["state", "state"]
    assert any(event["type"] == "progress" for event in heard)


def test_films_are_drawn_over_films_that_are_sent(remote: reverie.Client, local: Pipeline, tmp_path: Path) -> None:
    film = reverie.Animation(keyframes=("a bear", "an apple"), frames=4, fps=10, seed=3, steps=2)
    assert remote.animate(film, "gif").startswith(b"GIF8")
    write((frame.picture for frame in local.animate(film)), tmp_path / "film.gif", 10)
    over = reverie.Animation(keyframes=("a bear",), init_video=tmp_path / "film.gif", seed=3, steps=2)
    assert remote.animate(over, "webm").startswith(b"\x1aE\xdf\xa3")


def test_what_is_refused_is_said_as_by_the_library(remote: reverie.Client, url: str) -> None:
    with pytest.raises(reverie.ReverieError, match="this server allows 8") as caught:
        remote.text_to_image("a bear", count=9)
    assert caught.value.field == "count"
    remote.model = "other"
    with pytest.raises(reverie.ReverieError, match="there is no model 'other' here"):
        remote.text_to_image("a bear")
    with reverie.Client(url) as other, pytest.raises(reverie.ReverieError, match="a key is needed"):
        other.models()
    with reverie.Client("http://127.0.0.1:9") as nobody, pytest.raises(reverie.ReverieError, match="reverie serve"):
        nobody.models()


def test_clip_is_asked(remote: reverie.Client) -> None:
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    cosines = torch.tensor(remote.compare([red, blue])["cosines"])
    assert torch.allclose(cosines, reverie.load_clip().similarity([red, blue]).cosines, atol=1e-4)
    assert {guess["label"] for guess in remote.classify([red], ["red", "blue"])[0]} == {"red", "blue"}


def test_several_are_awaited_at_once(url: str) -> None:
    async def both() -> list[list[Image.Image]]:
        remote = reverie.AsyncClient(url, token="secret")
        drawn = await asyncio.gather(*(remote.text_to_image(prompt, **OWN) for prompt in ("a bear", "an apple")))
        await remote.close()
        return drawn

    bear, apple = asyncio.run(both())
    assert bear[0].tobytes() != apple[0].tobytes()
