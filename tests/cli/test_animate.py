"""Does `reverie animate` make the film that was asked for, go on where it broke off, and refuse in one line?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageChops

import reverie
from reverie import video
from reverie.animation.store import JOURNAL, FrameStore
from reverie.cli.app import run
from reverie.jobs import films
from reverie.media import footage
from reverie.requests import records
from reverie.requests.films import Animation
from reverie.requests.records import from_metadata, read_record

COMMAND = [str(Path(sys.executable).with_name("reverie"))]
QUICK = ["--steps", "3", "--guidance", "1", "--device", "cpu", "--seed", "3"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(reverie, "load", load, raising=False)


def frames(path: Path) -> list[Image.Image]:
    return list(footage.read(path).pictures())


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getbbox() is None


def test_two_prompts_become_films_of_every_kind_at_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a.mp4", "a.webm", "a.gif", "a.webp", "frames", "sheet.png")
    outputs = [part for name in names for part in ("-o", str(tmp_path / name))]
    assert (
        run(["animate", "a bear", "an apple", "--frames", "6", "--fps", "12", "--model", model, *QUICK, *outputs]) == 0
    )
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(tmp_path / name) for name in names]
    assert "6 frames, 0.5 s, seed 3" in told.err
    asked = Animation(keyframes=("a bear", "an apple"), frames=6, fps=12, steps=3, guidance=1, seed=3)
    for name in names:
        record = read_record(tmp_path / name)
        request = record.request
        assert record.model.startswith("tiny [")
        assert request.replace(width=None, height=None) == asked
        if name not in ("sheet.png", "a.webp"):  # WebP's encoder joins frames that look the same
            assert len(frames(tmp_path / name)) == 6
    lossless = frames(tmp_path / "frames")
    with Image.open(tmp_path / "sheet.png") as sheet:
        for index, frame in enumerate(lossless):
            left, top = 32 * (index % 3), 32 * (index // 3)
            assert same(sheet.crop((left, top, left + 32, top + 32)), frame)


def test_without_an_anchor_the_ends_are_the_pictures_of_the_prompts(model: str, tmp_path: Path) -> None:
    options = ["--anchor", "0", "--frames", "4", "--model", model, *QUICK, "-o", str(tmp_path / "f")]
    assert run(["animate", "a bear | an apple", *options]) == 0
    shown = frames(tmp_path / "f")
    system = reverie.load(model, device="cpu")
    for prompt, frame in (("a bear", shown[0]), ("an apple", shown[-1])):
        (alone,) = system.text_to_image(prompt, seed=3, steps=3, guidance=1.0)
        assert np.abs(np.asarray(alone, int) - np.asarray(frame, int)).max() <= 1


def test_keyframes_and_storyboards_say_the_same(model: str, tmp_path: Path, own_cache: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text(
        "fps = 5\nseconds = 9\nsteps = 3\nguidance = 1\nseed = 3\n"
        '[[keyframe]]\nprompt = "a bear"\ntime = 0\nseed = 4\n[[keyframe]]\nprompt = "an apple"\ntime = 0.8\n'
    )
    told = ["--keyframe", "0s: a bear @seed 4", "--keyframe", "0.8s: an apple", "--fps", "5", "--seconds", "1"]
    assert run(["animate", *told, "--model", model, *QUICK, "-o", str(tmp_path / "a")]) == 0
    assert (
        run(["animate", "--storyboard", str(board), "--seconds", "1", "--model", model, "-o", str(tmp_path / "b")]) == 0
    )
    assert from_metadata(tmp_path / "a") == from_metadata(tmp_path / "b")
    assert all(same(a, b) for a, b in zip(frames(tmp_path / "a"), frames(tmp_path / "b"), strict=True))
    assert len(list((own_cache / "frames").iterdir())) == 1  # the second drew nothing


def test_json_tells_what_was_made_and_what_was_there(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for name in ("a.gif", "b.webp"):
        options = ["--frames", "5", "--fps", "10", "--model", model, *QUICK, "--json", "-o", str(tmp_path / name)]
        assert run(["animate", "a bear", "an apple", *options]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [one["files"] for one in told] == [[str(tmp_path / "a.gif")], [str(tmp_path / "b.webp")]]
    assert [(one["frames"], one["kept"]) for one in told] == [(5, 0), (5, 5)]
    assert told[0]["seconds"] == pytest.approx(0.5)
    assert told[0]["size"] == [32, 32]
    assert Animation.of(told[0]["request"]).frames == 5


def test_a_replay_is_the_same_film(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "a.gif", "frames"):
        assert (
            run(
                ["animate", "a bear", "an apple", "--frames", "4", "--model", model, *QUICK, "-o", str(tmp_path / name)]
            )
            == 0
        )
        monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / f"other cache for {name}"))
        assert run(["replay", str(tmp_path / name), "--model", model, "--device", "cpu"]) == 0
    for name in ("a.mp4", "a.gif"):
        path = tmp_path / name
        assert path.with_stem("a-replay").read_bytes() == path.read_bytes()
    pairs = zip(frames(tmp_path / "frames"), frames(tmp_path / "frames-replay"), strict=True)
    assert all(same(a, b) for a, b in pairs)


def test_a_stopped_film_goes_on_and_ends_up_the_same(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a seed: the command has one of its own."""
    command = ["animate", "a bear", "an apple", "--frames", "11", "--steps", "3", "--device", "cpu", "--model", model]
    put, calls = FrameStore.put, []

    def stopped(self: FrameStore, drawn: Mapping[float, Image.Image]) -> None:
        calls.append(len(drawn))
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(self, drawn)

    with monkeypatch.context() as context:
        context.setattr(FrameStore, "put", stopped)
        assert run([*command, "-o", str(tmp_path / "broken.mp4")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "broken.mp4").exists()
    assert run([*command, "-o", str(tmp_path / "broken.mp4"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == sum(calls[:2]) > 0
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "another"))
    assert run([*command, "-o", str(tmp_path / "whole.mp4")]) == 0
    assert (tmp_path / "broken.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_film_over_a_film_keeps_its_rate(model: str, tmp_path: Path) -> None:
    video.write([Image.new("RGB", (32, 32), (40 * k, 90, 200)) for k in range(5)], tmp_path / "in.gif", 10)
    options = ["--init-video", str(tmp_path / "in.gif"), "--model", model, *QUICK, "-o", str(tmp_path / "out.gif")]
    assert run(["animate", "a bear", *options]) == 0
    assert (footage.read(tmp_path / "out.gif").fps, len(frames(tmp_path / "out.gif"))) == (pytest.approx(10), 5)


def test_a_search_for_an_even_pace_and_a_song_are_told_of(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(films, "SEARCH_INTERVAL", 0.0)
    ask = ["animate", "a bear", "an apple", "--model", model, *QUICK]
    assert run([*ask, "--frames", "6", "--pace", "perceptual", "-o", str(tmp_path / "even.gif")]) == 0
    assert "finding an even pace: 5 pictures looked at" in capsys.readouterr().err
    clicks = np.zeros(8000)
    clicks[[2000, 5000]] = 1
    soundfile.write(tmp_path / "song.wav", clicks, 8000)
    outputs = [str(tmp_path / name) for name in ("song.mp4", "song.gif")]
    asked = [*ask, "--fps", "10", "--audio", str(tmp_path / "song.wav"), "-o", outputs[0], "-o", outputs[1]]
    assert run(asked) == 0
    assert "'" + outputs[1] + "' moves to the sound but cannot hold it" in capsys.readouterr().err
    assert len(frames(tmp_path / "song.mp4")) == 10
    with av.open(outputs[0]) as film:
        assert [stream.type for stream in film.streams] == ["video", "audio"]


@pytest.mark.slow  # three processes that import torch
def test_a_killed_film_goes_on_and_ends_up_the_same(model: str, tmp_path: Path, own_cache: Path) -> None:
    """With kill -9 in the midst of drawing."""
    command = [*COMMAND, "animate", "a bear", "an apple", "--frames", "40", "--steps", "6", "--device", "cpu"]
    command += ["--model", model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = {**environment, "REVERIE_CACHE": str(tmp_path / "another")}
    subprocess.run([*command, "-o", str(tmp_path / "whole.mp4")], check=True, env=whole, capture_output=True)
    going_on = [*command, "-o", str(tmp_path / "broken.mp4")]
    process = subprocess.Popen(going_on, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journals: list[Path] = []
    while process.poll() is None and not (journals and journals[0].read_bytes().count(b"\n") >= 1):
        journals = list(own_cache.glob(f"frames/*/{JOURNAL}"))
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the film was complete before it could be killed"
    assert not (tmp_path / "broken.mp4").exists()
    done = subprocess.run([*going_on, "--json"], check=True, env=environment, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert 0 < told["kept"] < 40
    written = [(tmp_path / name).read_bytes() for name in ("broken.mp4", "whole.mp4")]
    assert written[0] == written[1]
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to show"),
        (["a bear"], "one keyframe"),
        (["a", "b", "--keyframe", "1s: c"], "prompts and --keyframe"),
        (["a", "b", "--frames", "0"], "frames 0 is not possible"),
        (["a", "b", "-o", "film.xyz"], "unknown container '.xyz'"),
        (["a", "b", "-o", "no/such/film.mp4"], "no such folder"),
        (["a", "b", "--fps", "60", "-o", "film.gif"], "at most 50"),
        (["a", "b", "-o", "f.gif", "-o", "f.gif"], "two outputs"),
        (["a", "b", "--easing", "smoth"], "did you mean 'smooth'"),
        (["--keyframe", "2s: a", "--keyframe", "1s: b"], "let their times rise"),
        (["a", "b", "--init-video", "nowhere.mp4"], "nowhere.mp4"),
        (["--storyboard", "nowhere.toml"], "nowhere.toml"),
        (["a", "b", "--size", "big"], "WIDTHxHEIGHT"),
        (["a", "b", "--drive", "energy"], "--drive is about a sound that moves a film; give one with --audio"),
        (["a", "b", "--smooth", "0.5"], "--smooth is about a sound"),
        (["a", "b", "--strength", "0.5"], "--strength is about a film to draw over; give one with --init-video"),
        (["a", "b", "--guidance-interval", "0.5"], "write START,END"),
        (["a", "b", "--guidance-interval", "0.8,0.2"], "give the smaller first"),
        (["a", "b", "--merge-tokens", "1"], "merge_tokens 1.0 is not possible"),
    ],
)
def test_bad_input_costs_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["animate", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert told.err.startswith("reverie: ")
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unloadable")
def test_replay_of_a_film_refuses_what_is_about_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = records.texts(Animation(keyframes=("a", "b"), seed=1), "other")
    video.write([Image.new("RGB", (8, 8))] * 2, tmp_path / "f.gif", 10, texts=texts)
    for arguments, said in (
        (["--grid"], "--grid is about pictures"),
        (["--mask", str(tmp_path / "f.gif")], "leave out --mask"),
        ([], "drawn by the model 'other'"),
    ):
        assert run(["replay", str(tmp_path / "f.gif"), *arguments]) == 2
        assert said in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = """
import sys
from reverie.cli.app import run
for arguments in (["animate", "--help"], ["animate", "one"], ["replay", "--help"]):
    run(arguments)
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
