"""Several requests with one model: the same pictures as alone, each with its own request, and all on a sheet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.jobs.batches import BatchJob, compare
from reverie.jobs.events import Finished, Saved
from reverie.jobs.pictures import PictureJob
from reverie.jobs.replay import replay_job
from reverie.media.pictures import grid, open_picture, save
from reverie.pipeline import Pipeline
from reverie.progress import Progress
from reverie.requests.pictures import ImageToImage, TextToImage
from reverie.requests.records import from_metadata, texts

ASKED = tuple(TextToImage(prompt=prompt, seed=7, steps=2) for prompt in ("a bear", "an apple"))


def jobs(folder: Path) -> tuple[PictureJob, ...]:
    return tuple(PictureJob(request=one, output=folder / f"{number}.png") for number, one in enumerate(ASKED))


def test_a_batch_draws_what_each_request_draws_alone(tiny: Pipeline, tmp_path: Path) -> None:
    loaded: list[str | None] = []

    def load(name: str | None) -> Pipeline:
        loaded.append(name)
        return tiny

    *events, last = BatchJob(jobs=jobs(tmp_path), sheet=tmp_path / "sheet.png").run(load)
    assert loaded == [None]
    files = [tmp_path / name for name in ("0.png", "1.png", "sheet.png")]
    assert [event.path for event in events if isinstance(event, Saved)] == files
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert isinstance(last, Finished)
    assert (last.record["files"], last.record["seeds"]) == (list(map(str, files)), [7, 7])
    pictures = [tiny.draw(one)[0] for one in ASKED]
    for file, picture, asked in zip(files, pictures, ASKED, strict=False):
        assert open_picture(file).tobytes() == picture.tobytes()
        made_by = from_metadata(file)
        assert isinstance(made_by, TextToImage)
        assert made_by.prompt == asked.prompt
    assert open_picture(files[2]).tobytes() == grid(pictures).tobytes()


def test_a_picture_of_another_request_or_finish_is_drawn_anew(tiny: Pipeline, tmp_path: Path) -> None:
    first, second = jobs(tmp_path)

    def draw(*jobs: PictureJob, system: Pipeline = tiny) -> int:
        return sum(isinstance(event, Saved) for event in BatchJob(jobs=jobs).run(lambda name: system))

    assert draw(first, second) == 2
    assert draw(first, replace(second, request=second.request.replace(steps=1))) == 1
    assert draw(first, second) == 1
    assert draw(first, second) == 0
    assert draw(first, replace(second, explain=True)) == 2
    assert draw(first, replace(second, metadata=False)) == 1
    assert draw(first, system=replace(tiny, name="tiny in bfloat16")) == 1  # as one that was loaded so is called


def test_a_sheet_of_one_picture_leaves_it_there(tmp_path: Path) -> None:
    options = {"best_of": None, "grid": True}
    job = BatchJob.of([TextToImage(prompt="a bear", seed=7)], tmp_path / "sheet.png", options)
    assert job.paths == [tmp_path / "sheet-0.png", tmp_path / "sheet.png"]


@pytest.mark.parametrize("name", ["reverie-turbo", "reverie-turbo in float16"])
def test_a_bundled_model_replays_by_its_name(tmp_path: Path, name: str) -> None:
    picture = Image.new("RGB", (8, 8))
    asked = TextToImage(prompt="a bear", seed=7, width=256, height=256, guidance=1.0)
    picture.info.update(texts(asked, name))
    assert "Model: reverie-turbo, " in picture.info["parameters"]
    save(picture, file := tmp_path / "bear.png")
    job, _ = replay_job(file, {})
    assert job.model == "reverie-turbo"


def test_models_are_loaded_one_after_the_other(tiny: Pipeline, tmp_path: Path) -> None:
    loaded: list[str | None] = []

    def load(name: str | None) -> Pipeline:
        loaded.append(name)
        return tiny

    first, second = jobs(tmp_path)
    several = tuple(
        replace(job, model=name, output=tmp_path / f"{name}-{job.output.name}")
        for job in (first, second)
        for name in "ab"
    )
    *_, last = BatchJob(jobs=several).run(load)
    assert isinstance(last, Finished)
    assert loaded == ["a", "b"]
    assert [Path(file).name for file in last.record["files"]] == ["a-0.png", "a-1.png", "b-0.png", "b-1.png"]


def test_a_comparison_lays_out_what_each_request_draws(tiny: Pipeline) -> None:
    asked = TextToImage(prompt="a bear", seed=7, steps=1)
    sheet, pictures = compare(tiny, asked, {"replace": ("bear", "apple"), "seed": (7, 8)})
    wanted = [asked.replace(prompt=prompt, seed=seed) for seed in (7, 8) for prompt in ("a bear", "a apple")]
    assert [one.tobytes() for one in pictures] == [tiny.draw(one)[0].tobytes() for one in wanted]
    regional = TextToImage(prompt="snow", seed=7, steps=1, regions=[{"prompt": "a bear", "box": "left"}])
    other = regional.replace(regions=[{"prompt": "a fox", "box": "left"}])
    _, (first, second) = compare(tiny, regional, {"replace": ("bear", "fox")})
    assert [first.tobytes(), second.tobytes()] == [tiny.draw(one)[0].tobytes() for one in (regional, other)]
    width, height = pictures[0].size
    assert sheet.width > 2 * width
    assert sheet.height > 2 * height
    with pytest.raises(ReverieError, match="one picture a cell"):
        compare(tiny, asked, {"count": (1, 2)})
    with pytest.raises(ReverieError, match=r"vary 'a.png' is not possible; it should be a list"):
        TextToImage.of({"vary": "a.png"})


def test_no_job_writes_over_what_another_reads(tmp_path: Path) -> None:
    first, second = jobs(tmp_path)
    Image.new("RGB", (8, 8)).save(first.output)
    own = PictureJob(request=ImageToImage.of({"init": first.output, "seed": 1}), output=second.output)
    with pytest.raises(ReverieError, match="is an input"):
        BatchJob(jobs=(first, own)).check()
