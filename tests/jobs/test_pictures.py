"""A job for pictures reports what happens, writes what it says, and refuses what it cannot before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.jobs.events import Finished, Note, Preview, Saved
from reverie.jobs.pictures import PictureJob
from reverie.jobs.replay import replay_job
from reverie.media.pictures import open_picture, save
from reverie.pipeline import Pipeline
from reverie.progress import Progress
from reverie.requests.pictures import ImageToImage, TextToImage
from reverie.requests.records import from_metadata, texts

BEAR = TextToImage(prompt="a bear", seed=7, steps=2)


def unloadable(name: str | None) -> Pipeline:
    raise AssertionError("a model was loaded before the input was checked")


def job(folder: Path, **options: Any) -> PictureJob:
    return PictureJob(**{"request": BEAR, "output": folder / "bear.png", **options})


def test_events_tell_what_happens_in_order(tiny: Pipeline, tmp_path: Path) -> None:
    asked: list[str | None] = []

    def load(name: str | None) -> Pipeline:
        asked.append(name)
        return tiny

    *events, last = job(tmp_path, request=BEAR.replace(count=2), model="x", previews=1).run(load)
    assert asked == ["x"]
    kinds = [Preview, Progress, Preview, Saved, Progress]
    assert [type(event) for event in events] == kinds * 2
    assert [event for event in events if isinstance(event, Progress)] == [Progress(n, 4, "steps") for n in (1, 2, 3, 4)]
    files = [tmp_path / "bear-0.png", tmp_path / "bear-1.png"]
    assert [event.path for event in events if isinstance(event, Saved)] == files
    assert isinstance(last, Finished)
    assert last.record["files"] == list(map(str, files))
    assert (last.record["seeds"], last.record["sizes"]) == ([7, 8], [(32, 32)] * 2)
    for file, picture in zip(files, tiny.draw(BEAR.replace(count=2)), strict=True):
        assert open_picture(file).tobytes() == picture.tobytes()


def test_a_job_that_is_closed_keeps_what_it_has_saved(tiny: Pipeline, tmp_path: Path) -> None:
    events = job(tmp_path, request=BEAR.replace(count=3)).run(lambda _: tiny)
    next(event for event in events if isinstance(event, Saved))
    events.close()  # type: ignore[attr-defined]
    assert [file.name for file in tmp_path.iterdir()] == ["bear-0.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taesd": Path("t")}, "`taesd` is about the preview"),
        ({"watermark": ""}, "says nothing"),
        ({"clip": "x"}, "`clip` ranks pictures"),
        ({"grid": True, "best_of": 3}, "`grid` is one file"),
        ({"output": Path("nowhere/a.png")}, "no such folder"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ReverieError, match=message):
        next(iter(job(tmp_path, **options).run(unloadable)))


def test_an_output_never_replaces_the_picture_that_it_starts_from(tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    Image.new("RGB", (32, 32), "red").save(own)
    (tmp_path / "link.png").symlink_to(own)
    request = ImageToImage(prompt="a bear", init=own, seed=1, steps=2)
    for name in ("own.png", "link.png"):
        with pytest.raises(ReverieError, match="is an input and would be written over"):
            job(tmp_path, request=request, output=tmp_path / name).check()
    job(tmp_path, request=request, output=tmp_path / "another.png").check()
    with pytest.raises(ReverieError, match="is there already"):
        job(tmp_path, output=own, no_clobber=True).check()


def test_without_metadata_a_file_says_nothing_of_its_request(tiny: Pipeline, tmp_path: Path) -> None:
    list(job(tmp_path, metadata=False).run(lambda _: tiny))
    assert open_picture(tmp_path / "bear.png").info.keys() <= {"dpi"}
    assert open_picture(tmp_path / "bear.png").tobytes() == tiny.draw(BEAR)[0].tobytes()


def test_a_replay_may_change_seed_steps_and_loras(tiny: Pipeline, tmp_path: Path, ink: Path) -> None:
    list(job(tmp_path).run(lambda _: tiny))
    changes = {"seed": 9, "steps": 3, "loras": (str(ink),)}
    again, notes = replay_job(tmp_path / "bear.png", changes, model="tiny")
    assert notes == []
    *_, last = again.run(lambda _: tiny)
    assert isinstance(last, Finished)
    (file,) = last.record["files"]
    asked = BEAR.replace(**changes)
    assert open_picture(file).tobytes() == tiny.draw(asked)[0].tobytes()
    made = from_metadata(file)
    assert (made.seed, made.steps) == (9, 3)
    with pytest.raises(ReverieError, match="was made without mask; leave out `mask`"):
        replay_job(tmp_path / "bear.png", {"mask": tmp_path / "bear.png"}, model="tiny")


@pytest.mark.parametrize(
    "part",
    [
        {"controls": [{"model": "gone.pth", "image": "seen.png"}]},
        {"ip_adapters": [{"model": "gone.pth", "images": ["seen.png"]}]},
        {"refiner": {"model": "gone.pth"}},
        {"hires": {"upscaler": "gone.pth"}},
    ],
)
def test_a_replay_says_where_to_put_a_model_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (64, 64))
    picture.save("seen.png")
    asked = TextToImage.of({"seed": 7, "width": 64, "height": 64, "guidance": 1.0, **part})
    picture.info.update(texts(asked, "reverie-emoji"))
    save(picture, file := Path("bear.png"))
    with pytest.raises(ReverieError, match=r"'gone.pth', which is not here; put it beside that file, or name its fol"):
        replay_job(file, {})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/gone.pth").touch()
    monkeypatch.setenv("REVERIE_MODEL_DIR", str(tmp_path / "models"))
    job, _ = replay_job(file, {})
    assert str(tmp_path / "models/gone.pth") in job.request.to_json()


def test_a_picture_that_names_no_model_asks_for_one(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64))
    picture.info["parameters"] = "a bear\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 64x64"
    save(picture, file := tmp_path / "bear.png")
    with pytest.raises(ReverieError, match="does not say by which model it was drawn; give one as `model`"):
        replay_job(file, {})


def test_another_model_is_noted(tiny: Pipeline, tmp_path: Path) -> None:
    events = job(tmp_path, drawn_by="other").run(lambda _: tiny)
    assert next(iter(events)) == Note("not honoured: it was drawn by 'other', this is 'tiny'")
