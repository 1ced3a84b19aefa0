"""`reverie classify`: pictures, labels, templates, and a folder per class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from reverie.cli.app import run
from reverie.cli.classify import read_labels, read_names
from reverie.errors import ReverieError
from reverie.media.pictures import open_picture
from reverie.similarity.embed import load_clip

CPU = ["--device", "cpu"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_prints_what_python_computes(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("bear\napple\n\n熊\nbear\n", encoding="utf-8")
    labels, templates = ["bear", "apple", "熊"], ["a {}", "{}"]
    (tmp_path / "templates.txt").write_text("\n".join(templates))
    expected = load_clip(device="cpu").classify([photo], labels, templates, top=2)[0]
    words = ["classify", str(photo), "--labels", str(tmp_path / "labels.txt"), "--top", "2", *CPU]
    words += ["--templates", str(tmp_path / "templates.txt")]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [guess["label"] for guess in told["guesses"]] == [guess.label for guess in expected.guesses]
    assert told["guesses"][0]["probability"] == pytest.approx(expected.guesses[0].probability, abs=1e-5)
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photo)
    assert lines[1].split()[-1] == expected.label
    assert len(lines) == 3


def test_labels_that_are_none_or_repeated_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_labels("cat,cat,dog") == ["cat", "dog"]
    assert capsys.readouterr().err == "each label counts once; given more than once: cat\n"
    for nothing in ("", " , "):
        with pytest.raises(ReverieError, match="holds no labels; write them with commas"):
            read_labels(nothing)


def test_evaluates_a_folder(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bear", "red_apple"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(photo.read_bytes())
    (tmp_path / "set" / "bear" / "1.png").write_bytes(b"broken")
    words = ["classify", "--evaluate", str(tmp_path / "set"), *CPU]
    assert run([*words, "-o", str(tmp_path / "confusion.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pictures"], told["top1"], told["top5"]) == (2, 0.5, 1.0)  # the same picture in both
    assert set(told["classes"]) == {"bear", "red apple"}
    assert told["skipped"][0]["file"].endswith("1.png")
    assert open_picture(tmp_path / "confusion.png").width > 100
    (tmp_path / "names.tsv").write_text("bear\t熊\nred_apple\t苹果\n", encoding="utf-8")
    assert run([*words, "--labels", str(tmp_path / "names.tsv")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("top-1 50.00%  top-5 100.00%")
    assert "1 files skipped" in out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "what is in which picture?"),
        (["missing.jpg", "--labels", "a,b"], "no picture 'missing.jpg'"),
        (["{photo}"], "what is in which picture?"),
        (["{photo}", "--labels", ",,"], "holds no labels"),
        (["{photo}", "--labels", "none.txt"], "no file of labels 'none.txt'"),
        (["{photo}", "--labels", "bear"], "the one label 'bear'"),
        (["--evaluate", "{photo}/..", "--labels", "a,b"], "no file 'a,b'; --labels of --evaluate"),
        (["{photo}", "--labels", "a,b", "--templates", "clip"], "unknown templates 'clip'"),
        (["{photo}", "--labels", "a,b", "--templates", "a" * 300], "unknown templates"),
        (["{photo}", "--labels", "a,b", "--top", "0"], "should be 1 or more"),
        (["{photo}", "--labels", "a,b", "-o", "x.png"], "goes with --evaluate"),
        (["{photo}", "--evaluate", "."], "leave one of both out"),
        (["--evaluate", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], fault: str, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reverie.cli.similarity.ClipOptions.load", None)  # nothing is loaded for it
    assert run(["classify", *(argument.replace("{photo}", str(photo)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


def test_labels_and_names(tmp_path: Path) -> None:
    many = [f"thing {number}" for number in range(99)]  # longer than a file's name may be
    assert read_labels(",".join(many)) == many
    assert read_labels("cat, dog，熊,cat") == ["cat", "dog", "熊"]
    (tmp_path / "names.tsv").write_text("n01\ttench\nn02 goldfish\n")
    with pytest.raises(ReverieError, match="a folder's name, a tab and its label"):
        read_names(str(tmp_path / "names.tsv"))
