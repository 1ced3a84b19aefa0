"""Does `reverie music` write what was asked for, again and again, and refuse in one line before it loads a model?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import reverie
from reverie.cli.app import run
from reverie.media import footage, sound
from reverie.media.pictures import open_picture
from reverie.media.sound import Sound
from reverie.pipeline import Pipeline
from reverie.requests.records import from_metadata, read_record
from reverie.sound.spectrogram import SpectrogramParams

HEARING = SpectrogramParams(sample_rate=8_000, step_ms=10, window_ms=32, padded_ms=32, mels=32, high=4_000, columns=32)
QUICK = ["--steps", "2", "--guidance", "1", "--device", "cpu", "--seed", "7"]


@pytest.fixture(scope="module")
def model(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the folder of a tiny model of music; its clips last 0.32 s."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    replace(tiny, spectrogram=HEARING).save(folder)
    return str(folder)


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(reverie, "load", load, raising=False)


def test_a_prompt_becomes_sounds_and_their_picture(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [tmp_path / name for name in ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.png")]
    outputs = [part for name in names for part in ("-o", str(name))]
    flags = ["--bpm", "240", "--seconds", "1", "--loop", "--stereo", "--negative", "an apple", "--sampler", "euler"]
    assert run(["music", "a bear", *flags, "--model", model, *QUICK, *outputs]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(name) for name in names]
    assert "1.00 s, seed 7" in told.err
    flac = sound.read(names[1])
    assert (flac.samples.shape, flac.rate) == ((2, 8000), 8000)
    asked = from_metadata(names[0])
    assert (asked.prompt, asked.bpm, asked.loop, asked.negative) == ("a bear", 240, True, "an apple")
    assert open_picture(names[4]).size == (100, 32)


def test_several_clips_are_numbered_and_told_as_json(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-o", str(tmp_path / "a.flac"), "-o", str(tmp_path / "a.png"), "--count", "2", "--json"]
    assert run(["music", "a bear", *flags, "--model", model, *QUICK]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / name) for name in ("a-0.flac", "a-0.png", "a-1.flac", "a-1.png")]
    assert (told["seeds"], told["seconds"], told["rate"], told["channels"]) == ([7, 8], [0.32, 0.32], 8000, 1)
    assert told["real_time_factor"] == pytest.approx(0.64 / told["timings"]["draw"], rel=0.02)
    assert told["request"]["prompt"] == "a bear"


@pytest.mark.parametrize("name", ["a.wav", "a.png"])
def test_replay_makes_the_same_file(model: str, tmp_path: Path, name: str) -> None:
    song = tmp_path / "song.wav"
    sound.write(Sound(torch.randn(1, 4000) / 10, 8000), song)
    made = tmp_path / name
    flags = ["--to", "an apple @seed 3", "--alpha", "0.5", "--init", str(song), "--strength", "0.5"]
    assert run(["music", "a bear", *flags, "-o", str(made), "--model", model, *QUICK]) == 0
    assert run(["replay", str(made), "--model", model, "--device", "cpu"]) == 0
    again = tmp_path / f"a-replay{made.suffix}"
    if made.suffix == ".png":
        assert again.read_bytes() == made.read_bytes()
    else:  # transforms round by where their numbers lie in memory
        assert (sound.read(again).samples - sound.read(made).samples).abs().max() < 1e-3
    assert read_record(again) == read_record(made)
    song.rename(tmp_path / "moved.wav")
    assert run(["replay", str(made), "--model", model]) == 2
    moved = ["--init", str(tmp_path / "moved.wav"), "-o", str(tmp_path / f"b{made.suffix}"), "--device", "cpu"]
    assert run(["replay", str(made), "--model", model, *moved]) == 0


def test_a_film_has_the_music_as_its_sound_and_is_made_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film, again = tmp_path / "a.mp4", tmp_path / "a-replay.mp4"
    flags = ["--to", "an apple", "--walk", "2", "--bpm", "240", "--film", str(film), "--film-model", model]
    flags += ["--film-steps", "2", "--film-fps", "4", "--film-move", "onsets"]
    assert run(["music", "a bear", *flags, "--model", model, *QUICK]) == 0
    with av.open(str(film)) as opened:
        assert {stream.type for stream in opened.streams} == {"video", "audio"}
        assert opened.streams.video[0].frames == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]
    assert run(["replay", str(film), "--model", model, "--device", "cpu"]) == 2  # its pictures' model is not named
    monkeypatch.setenv("REVERIE_MODEL_DIR", str(Path(model).parent))
    assert run(["replay", str(film), "--model", model, "--device", "cpu"]) == 0
    assert read_record(again) == read_record(film)
    assert len(read_record(film).film.sha256) == 64
    pairs = zip(footage.read(film).pictures(), footage.read(again).pictures(), strict=True)
    assert all(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean() < 4 for a, b in pairs)


def test_a_model_of_a_film_that_is_not_there_is_told_before_playing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-o", str(tmp_path / "a.wav"), "--film", str(tmp_path / "a.mp4"), "--film-model", str(tmp_path / "gone")]
    assert run(["music", "a bear", *flags, "--model", model, *QUICK]) == 2
    assert "gone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seconds", "nan"], "seconds nan is not possible"),
        (["--seconds", "0"], "greater than or equal to 0.1"),
        (["--seconds", "99999"], "less than or equal to 3600"),
        (["--sampler", "eular"], "did you mean 'euler'"),
        (["--guidance-interval", "0.8,0.2"], "give the smaller first"),
        (["--cache-steps", "0"], "cache_steps 0 is not possible"),
        (["--strength", "0.5"], "--strength is about a sound to start from"),
        (["--init", "gone.wav"], "cannot read 'gone.wav'"),
        (["--to", "b"], "give alpha or walk"),
        (["-o", "a.txt"], "unknown sound format"),
        (["-o", "nowhere/a.wav"], "no such folder"),
        (["-o", "nowhere/a.png"], "no such folder"),
        (["-o", "."], "is a folder"),
        (["-o", "a.wav", "-o", "a.wav"], "two outputs have one name"),
        (["--film", "a.gif"], "cannot hold sound"),
        (["--film", "a.mp4", "--count", "2"], "count is 2"),
        (["--film-fps", "3"], "--film-fps is about a film"),
        (["--film", "a.mp4", "--film-move", "cut"], "unknown film move 'cut'"),
        (["--film", "a.mp4", "--film-size", "big"], "size 'big' is not possible"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["music", "a bear", "--seed", "7", *flags]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_request_that_a_wav_cannot_hold_is_told_before_playing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["music", "a bear " * 300, "-o", str(tmp_path / "a.wav"), "--model", model, *QUICK]) == 2
    assert "write .flac, .ogg or .mp3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_of_pictures_and_a_picture_of_none_are_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 32), "gray").save(tmp_path / "gray.png")
    out = ["-o", str(tmp_path / "a.wav")]
    assert run(["music", "a", "--init", str(tmp_path / "gray.png"), *out, "--model", model, *QUICK]) == 0
    assert "does not say that it is a spectrogram" in capsys.readouterr().err
    assert run(["music", "a", *out, "--model", "reverie-emoji", *QUICK]) == 2
    assert "give a model of music" in capsys.readouterr().err
    sound.write(Sound(torch.zeros(1, 800), 8000), tmp_path / "plain.wav")
    assert run(["replay", str(tmp_path / "plain.wav"), "--model", model]) == 2
    assert "does not say how it was made" in capsys.readouterr().err
