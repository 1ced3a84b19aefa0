"""Are keyframes read as they are written, in texts and in files?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.requests import storyboard
from reverie.requests.films import Animation

TEXTS = {
    "a bear": [{"prompt": "a bear"}],
    "0s: a bear @seed 3": [{"prompt": "a bear", "time": 0.0, "seed": "3"}],
    " 1.5 s :an apple": [{"prompt": "an apple", "time": 1.5}],
    "a bear | an apple|a pear": [{"prompt": "a bear"}, {"prompt": "an apple"}, {"prompt": "a pear"}],
    "a [bear|apple] (b|c) | d": [{"prompt": "a [bear|apple] (b|c)"}, {"prompt": "d"}],
    r"a \| b": [{"prompt": r"a \| b"}],
    "a | b @guidance 3 @negative dark, blurred": [
        {"prompt": "a", "guidance": "3", "negative": "dark, blurred"},
        {"prompt": "b", "guidance": "3", "negative": "dark, blurred"},
    ],
    "@image cat photo.png": [{"prompt": "", "image": "cat photo.png"}],
    "a bear @ night, me@home": [{"prompt": "a bear @ night, me@home"}],
    "ratio 3s: no time": [{"prompt": "ratio 3s: no time"}],
    "": [{"prompt": ""}],
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert storyboard.parse(text) == TEXTS[text]


@pytest.mark.parametrize("text", ["1s: a | b", "a @seed 1 @seed 2", "a @colour red"])
def test_texts_that_are_refused(text: str) -> None:
    with pytest.raises(ReverieError):
        storyboard.parse(text)


BOARD = """
fps = 10
seed = 5
[[keyframe]]
time = 0
prompt = "a bear"
image = "bear.png"
[[keyframe]]
time = 1.5
prompt = "an apple"
"""


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "green").save(tmp_path / "bear.png")
    (tmp_path / "film.toml").write_text(BOARD)
    keyframes = ["0s: a bear @image bear.png", "1.5s: an apple"]
    (tmp_path / "film.json").write_text(json.dumps({"fps": 10, "seed": 5, "keyframes": keyframes}))
    films = [Animation.of(storyboard.read(tmp_path / name)) for name in ("film.toml", "film.json")]
    assert films[0] == films[1]
    assert films[0].keyframes[0].image is not None
    assert films[0].keyframes[0].image.path == str(tmp_path / "bear.png")  # beside the storyboard, wherever one stands


def test_files_are_beside_the_storyboard(tmp_path: Path) -> None:
    board = tmp_path / "film.json"
    board.write_text(json.dumps({"keyframes": ["a", "b"], "audio": "song.wav", "loras": ["x.safetensors:0.5"]}))
    fields = storyboard.read(board)
    assert fields["audio"] == str(tmp_path / "song.wav")
    assert fields["loras"] == [str(tmp_path / "x.safetensors") + ":0.5"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("film.toml", "keyframe = [", "is not TOML"),
        ("film.json", "{", "is not JSON"),
        ("film.json", "[" * 100_000, "is not JSON"),
        ("film.json", "[]", "must hold a table"),
        ("film.json", "{}", "holds no keyframes"),
        ("film.json", '{"keyframes": [3]}', "write a table or a text"),
        ("film.yaml", "", "write it as .toml or .json"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ReverieError, match=message):
        storyboard.read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="cannot read"):
        storyboard.read(tmp_path / "none.toml")


def test_a_time_without_its_colon_is_no_prompt() -> None:
    with pytest.raises(ReverieError, match="has no colon after it; write '0s: a bear'"):
        storyboard.parse("0s a bear")
    for prompt in ("80s style", "1980s cars", "2 sheep"):
        assert storyboard.parse(prompt) == [{"prompt": prompt}]
