"""`reverie similarity` and what it tells from its arguments."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from reverie.cli.app import run
from reverie.cli.similarity import shorten, split_items, table
from reverie.errors import ReverieError
from reverie.media.pictures import open_picture
from reverie.similarity.embed import load_clip


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    for file, colour in zip(files, ("red", "blue"), strict=True):
        Image.new("RGB", (40, 30), colour).save(file)
    return files


def test_prints_what_python_computes(pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = load_clip(device="cpu").similarity(pictures, ["a bear", "an apple"]).cosines.tolist()
    words = [*map(str, pictures), "a bear", "an apple", "--device", "cpu"]
    assert run(["similarity", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == [str(file) for file in pictures]
    assert told["columns"] == ["a bear", "an apple"]
    for row, other in zip(told["cosines"], expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert run(["similarity", *words, "--csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [float(value) for value in rows[1][1:]] == pytest.approx(expected[0], abs=1e-5)
    assert run(["similarity", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].split()[0] == "blue.png"
    assert [float(value) for value in lines[2].split()[1:]] == pytest.approx(expected[1], abs=1e-3)


def test_texts_alone_and_a_heat_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    font = ImageFont.load_default(12)
    monkeypatch.setattr("reverie.media.charts.font_for", lambda text, size: None if "熊" in text else font)
    heat = tmp_path / "heat.png"
    assert run(["similarity", "熊", "--text", "bear.png", "-o", str(heat), "--json", "--device", "cpu"]) == 0
    answer = capsys.readouterr()
    told = json.loads(answer.out)
    assert "numbered: #1 熊; install one" in answer.err
    assert told["rows"] == told["columns"] == ["熊", "bear.png"]
    assert told["cosines"][0][0] == pytest.approx(1, abs=1e-5)
    assert open_picture(heat).width > 2 * 56


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "nothing to compare"),
        (["missing.png"], "no picture 'missing.png'"),
        (["a bear", "-o", "heat.xyz"], "names no picture format"),
        (["a bear", "--model", "nowhere"], "no CLIP at 'nowhere'"),
        (["."], "is a folder; give its pictures"),
        (["./"], "is a folder; give its pictures"),
        (["a bear", "--json", "--csv"], "leave one out"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["similarity", *arguments]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


def test_files_and_texts_are_told_apart(pictures: list[Path]) -> None:
    assert split_items(["a bear", str(pictures[0]), "draw bear.png"]) == ([pictures[0]], ["a bear", "draw bear.png"])
    assert split_items(["x" * 5000]) == ([], ["x" * 5000])
    with pytest.raises(ReverieError, match="give it with --text"):
        split_items(["bear.JPG"])
    assert split_items(["熊" * 400]) == ([], ["熊" * 400])  # longer than a file's name may be


def test_files_of_one_name_keep_their_folders() -> None:
    assert shorten(["a/0.png", "a/1.png"]) == ["0.png", "1.png"]
    assert shorten(["a/0.png", "b/0.png"]) == ["a/0.png", "b/0.png"]


def test_tables_align_chinese() -> None:
    lines = table(["熊", "bear"], ["苹果", "x"], [["0.100", "0.2"], ["0.3", "0.4"]])
    assert lines == ["       苹果    x", "熊    0.100  0.2", "bear    0.3  0.4"]
