"""Does --best-of keep what CLIP ranks first, with its score, and does --explain write its sheet?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reverie.cli.app import run
from reverie.errors import ReverieError
from reverie.media.pictures import REQUEST, open_picture
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage
from reverie.similarity.embed import load_clip


def draw(model: str, *arguments: str) -> int:
    return run(["image", "a bear", "-o", "bear.png", "--model", model, "--seed", "7", "--steps", "2", *arguments])


@pytest.mark.parametrize("prompt", ["", "  ", "<lora:x:1>"])
def test_an_empty_prompt_is_not_explained(
    prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["image", prompt, "--explain", "--model", "nowhere"]) == 2
    assert "--explain is about the words of a prompt; give some, or leave it out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_python_keeps_the_same(tiny: Pipeline) -> None:
    request = TextToImage(prompt="(a bear:1.2)", seed=7, steps=2)
    every = tiny.draw(request.replace(count=3))
    clip = load_clip()
    cosines = clip.similarity(every, ["a bear"]).cosines[:, 0]  # without weights and brackets
    (kept,) = tiny.best(request, of=3, clip=clip)
    assert kept.tobytes() == every[int(cosines.argmax())].tobytes()
    assert json.loads(kept.info[REQUEST])["score"]["cosine"] == pytest.approx(cosines.max().item(), abs=1e-5)
    with pytest.raises(ReverieError, match="no choice"):
        tiny.best(request.replace(count=3), of=3, clip=clip)


def test_a_wrong_clip_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("nowhere", "--best-of", "2", "--clip", "clip.safetensors") == 2
    assert "no CLIP at 'clip.safetensors'" in capsys.readouterr().err


def test_the_best_is_kept(
    model: str, tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert draw(model, "--best-of", "3", "--count", "2", "--explain", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    every = tiny.text_to_image("a bear", seed=7, steps=2, count=3)
    clip = load_clip()
    cosines = clip.similarity(every, ["a bear"]).cosines[:, 0]
    order = cosines.argsort(descending=True).tolist()
    assert told["seeds"] == [7 + place for place in order[:2]]
    for rank, place in enumerate(order[:2]):
        kept = open_picture(f"bear-{rank}.png")
        assert kept.tobytes() == every[place].tobytes()
        score = json.loads(kept.info[REQUEST])["score"]
        assert score == {"clip": clip.name, "cosine": pytest.approx(cosines[place].item(), abs=1e-5), "of": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(told["files"])
    assert open_picture("bear-0-explained.png").width >= 2 * 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--best-of", "1"], "at least 2"),
        (["--best-of", "2", "--count", "2"], "is no choice"),
        (["--best-of", "2", "--grid"], "--grid"),
        (["--clip", "x"], "--best-of"),
        (["--explain", "--tile-size", "64"], "--explain does not go with --tile-size"),
        (["--explain", "--region", "left=a bear"], "--explain does not go with --region;"),
        (["--explain", "--refiner", "x"], "--explain does not go with --refiner"),
    ],
)
def test_options_that_go_ill_together(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert draw("nowhere", *arguments) == 2
    assert message in capsys.readouterr().err
