"""Rendering gives shards that webdataset's readers understand, the same bytes however it is stopped or spread."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.files import tar_members
from reverie.jobs import render as rendering
from reverie.jobs.render import read_requests, render
from reverie.pipeline import Pipeline
from reverie.requests.music import Music
from reverie.requests.pictures import TextToImage
from reverie.similarity.curation.samples import read_samples

BEARS = [TextToImage(prompt=f"bear {n}", seed=n, steps=1) for n in range(5)]


@pytest.fixture
def loads(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Let the tiny model draw, and name the models that are asked for."""
    asked: list[str | None] = []

    def loaded(name: str | None, options: object) -> Pipeline:
        asked.append(name)
        return tiny

    monkeypatch.setattr(rendering, "_load", loaded)
    return asked


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_a_shard_holds_each_picture_with_its_request(tiny: Pipeline, loads: list[str | None], tmp_path: Path) -> None:
    events = list(render(BEARS, tmp_path, shard_size=2))
    assert [(event.done, event.total) for event in events] == [(0, 5), (2, 5), (4, 5), (5, 5)]
    samples = [sample for number in range(3) for sample in read_samples(tmp_path / f"{number:05}.tar")]
    assert [sample.key for sample in samples] == ["000000000", "000000001", "000010000", "000010001", "000020000"]
    for sample, request in zip(samples, BEARS, strict=True):
        assert sample.picture is not None
        assert Image.open(io.BytesIO(sample.picture)).tobytes() == tiny.draw(request)[0].tobytes()
        told = json.loads(sample.content("json") or b"")
        assert TextToImage.of(told["request"]).seed == request.seed
        assert sample.text == request.prompt


def test_nothing_written_names_a_folder(loads: list[str | None], tmp_path: Path) -> None:
    model = tmp_path / "someone" / "tiny.safetensors"
    model.parent.mkdir()
    model.touch()
    list(render(BEARS[:1], tmp_path / "shards", model=str(model)))
    (sample,) = read_samples(tmp_path / "shards" / "00000.tar")
    assert json.loads(sample.content("json") or b"")["model"] == "tiny.safetensors"
    assert all(b"someone" not in content for content in shards(tmp_path / "shards").values())


def test_a_sample_names_the_pictures_of_its_request(loads: list[str | None], tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(mask := tmp_path / "mask.png")
    list(render([BEARS[0].replace(regions=[{"prompt": "snow", "mask": mask}])], tmp_path / "shards"))
    (sample,) = read_samples(tmp_path / "shards" / "00000.tar")
    assert json.loads(sample.content("json") or b"")["request"]["regions"][0]["mask"]["name"] == "mask.png"


def test_what_is_whole_is_not_drawn_again(loads: list[str | None], tmp_path: Path) -> None:
    list(render(BEARS, tmp_path / "whole", shard_size=2))
    events = render(BEARS, tmp_path / "stopped", shard_size=2)
    next(events), next(events)
    events.close()  # type: ignore[attr-defined]
    (tmp_path / "stopped" / ".00001.tar.123.part").write_bytes(b"half")
    drawn = len(loads)
    list(render(BEARS, tmp_path / "stopped", shard_size=2))
    assert shards(tmp_path / "stopped") == shards(tmp_path / "whole")
    assert len(loads) - drawn == 2 * 3  # before its shard, and for its drawing
    list(render(BEARS, tmp_path / "stopped", shard_size=2))
    assert len(loads) - drawn == 2 * 3


def test_other_requests_are_not_mixed_in(loads: list[str | None], tmp_path: Path) -> None:
    list(render(BEARS, tmp_path, shard_size=2))
    for others, model in ((BEARS[1:], None), (BEARS[:2], None), (BEARS, "other")):
        with pytest.raises(ReverieError, match="shards of other requests"):
            list(render(others, tmp_path, shard_size=2, model=model))


def test_a_request_that_fails_is_told_and_drawn_by_the_next_run(
    tiny: Pipeline, loads: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(render(BEARS, tmp_path / "whole", shard_size=2))
    job = rendering._job

    def fragile(request: Any, base: Path, model: str | None) -> Any:
        if request.prompt in ("bear 3", "bear 4"):
            raise ReverieError("no such bear")
        return job(request, base, model)

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "_job", fragile)
        events = list(render(BEARS, tmp_path / "failed", shard_size=2))
    assert [event.failed for event in events] == [{}, {}, {3: "no such bear"}, {4: "no such bear"}]
    assert [sample.key for sample in read_samples(tmp_path / "failed" / "00001.tar")] == ["000010000"]
    assert not (tmp_path / "failed" / "00002.tar").exists()
    assert not any(event.failed for event in render(BEARS, tmp_path / "failed", shard_size=2))
    assert shards(tmp_path / "failed") == shards(tmp_path / "whole")


def test_lines_and_tables_are_the_same_requests(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    lines.write_text('{"prompt": "a bear", "steps": 3}\n\n{"kind": "music", "prompt": "a piano", "seed": 9}\n')
    table.write_text("kind,prompt,steps,seed\n,a bear,3,\nmusic,a piano,,9\n")
    for file in (lines, table):
        picture, music = read_requests(file, seed=5)
        assert picture == TextToImage(prompt="a bear", steps=3, seed=5)
        assert music == Music(prompt="a piano", seed=9)
        assert picture.model_fields_set == {"prompt", "steps", "seed"}  # the rest is the model's to recommend


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: it is not JSON"),
        ("[1]", "line 2: it is no JSON object"),
        ('{"prompt": "x", "step": 2}', "line 2: unknown option 'step'; did you mean 'steps'"),
        ('{"kind": "poem"}', "line 2: unknown kind 'poem'"),
        ('{"kind": ["poem"]}', "line 2: unknown kind"),
        ('{"prompt": "x", "count": 2}', "line 2: count 2 asks for several"),
        ('{"kind": "image_to_image", "prompt": "x", "init": "missing.png"}', "line 2: .*missing.png"),
    ],
)
def test_a_bad_line_is_named(line: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "x"}\n' + line + "\n")
    with pytest.raises(ReverieError, match=told):
        read_requests(file)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "reverie", "render", *map(str, arguments)]


@pytest.mark.slow
def test_the_same_bytes_after_a_kill_and_by_any_number_of_processes(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "a bear", "steps": 4}\n' * 8)
    subprocess.run(command(file, "-o", tmp_path / "one", "--shard-size", 2), check=True)
    stopped = command(file, "-o", tmp_path / "two", "--shard-size", 2, "--workers", 2)
    process = subprocess.Popen(stopped)
    while not list((tmp_path / "two").glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for shard in (tmp_path / "two").glob("*.tar"):
        assert len(list(tar_members(shard))) == 6
    assert len(list((tmp_path / "two").glob("*.tar"))) < 4
    subprocess.run(stopped, check=True)
    assert shards(tmp_path / "two") == shards(tmp_path / "one")
