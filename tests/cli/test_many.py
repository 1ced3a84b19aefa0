"""The flags of `reverie image` for pictures that differ in more than their seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from reverie.cli.app import run
from reverie.requests.pictures import TextToImage
from reverie.requests.records import from_metadata


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(model: str, prompt: str, *arguments: str) -> int:
    return run(["image", prompt, "-o", "out.png", "--model", model, "--seed", "1", "--steps", "1", *arguments])


def asked(file: str) -> TextToImage:
    request = from_metadata(file)
    assert isinstance(request, TextToImage)
    return request


def test_dynamic_prompts_are_drawn_for_each_picture(model: str) -> None:
    Path("words").mkdir()
    Path("words/animals.txt").write_text("bear\n")
    assert draw(model, "a {red|blue} __animals__", "--wildcards", "words", "--count", "3", "--grid") == 0
    prompts = [asked(f"out-{number}.png").prompt for number in range(3)]
    assert prompts == ["a blue bear", "a red bear", "a blue bear"]  # as dynamicprompts 0.31.0 draws for 1, 2, 3
    assert asked("out-1.png").template == "a {red|blue} __animals__"
    assert Path("out.png").is_file()


def test_braces_are_text_where_nothing_is_said(model: str) -> None:
    assert draw(model, "a {red|blue} bear") == 0
    assert (asked("out.png").prompt, asked("out.png").template) == ("a {red|blue} bear", "")


def test_best_of_is_of_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("x", "{a|b}", "--dynamic", "--count", "2", "--best-of", "4") == 2
    assert "--best-of compares pictures of one prompt" in capsys.readouterr().err


def test_styles_go_before_what_is_drawn(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("styles.csv").write_text('name,prompt,negative_prompt\nink,"{prompt} in {ink|ink}",oil\n')
    assert draw(model, "a bear", "--style", "ink", "--styles", "styles.csv", "--dynamic") == 0
    assert (asked("out.png").prompt, asked("out.png").negative) == ("a bear in ink", "oil")
    assert draw(model, "a bear", "--style", "oil", "--styles", "styles.csv") == 2
    assert "no style 'oil'; there is ink" in capsys.readouterr().err
    assert draw(model, "a bear", "--style", "ink") == 2


def test_a_grid_draws_what_its_flags_would_and_goes_on(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--axis", "replace=bear,fox", "--axis", "steps=1,2", "--axis", "lora-dir=,x"]
    assert draw(model, "a bear", *axes) == 0
    cells = [(asked(f"out-{number}.png").prompt, asked(f"out-{number}.png").steps) for number in range(8)]
    assert cells == [("a bear", 1), ("a fox", 1), ("a bear", 2), ("a fox", 2)] * 2
    assert {asked(f"out-{number}.png").seed for number in range(8)} == {1}
    sheet, cell = Path("out.png").read_bytes(), Path("out-3.png").read_bytes()
    assert run(["image", "a fox", "-o", "alone.png", "--model", model, "--seed", "1", "--steps", "2"]) == 0
    assert Path("alone.png").read_bytes() == cell
    Path("out-3.png").unlink()
    capsys.readouterr()
    assert draw(model, "a bear", *axes) == 0
    assert "not drawn again" in capsys.readouterr().err
    assert (Path("out.png").read_bytes(), Path("out-3.png").read_bytes()) == (sheet, cell)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (["step=1,2"], "unknown axis 'step'; did you mean 'steps'? choose from"),
        (["steps=1,x"], "steps 'x' is not possible"),
        (["steps"], "write NAME=VALUE,VALUE"),
        (["steps="], "axis 'steps' has no values"),
        (["replace=cat,dog"], "'cat' is in no prompt"),
        (["model=a,b"], "no model at 'a'"),
        (["seed=1", "steps=1", "guidance=1", "eta=0"], "a grid of 4 axes is not possible; give 1 to 3"),
    ],
)
def test_an_axis_that_cannot_be_is_told(axes: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("x", "a bear", *(part for axis in axes for part in ("--axis", axis))) == 2
    assert says in capsys.readouterr().err


def test_a_folder_is_drawn_over_picture_by_picture(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    Path("out").mkdir()
    Path("in/0.png").write_text("no picture")
    for name, colour in (("Bär 2.jpg", "red"), ("10.bmp", "blue")):
        Image.new("RGB", (32, 32), colour).save(Path("in", name))
    drawing = ["image", "a bear", "--model", model, "--seed", "1", "--steps", "2"]
    assert run([*drawing, "--init", "in", "-o", "out"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == ["out/10.png", "out/Bär 2.jpg"]
    assert "left out: '0.png': cannot read 'in/0.png'" in said.err
    assert said.err.endswith("left out, the others are drawn: 0.png\n")
    assert run([*drawing, "--init", "in/10.bmp", "-o", "alone.png"]) == 0
    assert Path("alone.png").read_bytes() == Path("out/10.png").read_bytes()
    Path("in/0.png").unlink()
    assert run([*drawing, "--init", "in", "-o", "out"]) == 0
    assert "not drawn again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "out.png"], "--init 'in' is a folder; give another one that is there with --output"),
        (["-o", "in"], "is an input and would be written over"),
        (["-o", ".", "--steps", "0"], "steps 0 is not possible"),
        (["-o", ".", "--model", "missing"], "missing"),
        (["-o", ".", "--axis", "steps=1,2"], "--axis draws a grid over one picture"),
    ],
)
def test_a_folder_that_cannot_be_drawn_over_is_told(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (32, 32)).save(Path("in", name))
    assert run(["image", "a bear", "--init", "in", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_variations_of_a_picture_keep_its_seed(model: str) -> None:
    assert draw(model, "a bear") == 0
    assert run(["replay", "out.png", "--model", model, "--variations", "2"]) == 0
    first, second = (asked(f"out-replay-{number}.png") for number in range(2))
    assert first.variation is not None
    assert second.variation is not None
    assert (first.seed, second.seed, first.prompt) == (1, 1, "a bear")
    assert (first.variation.strength, second.variation.seed - first.variation.seed) == (0.2, 1)
