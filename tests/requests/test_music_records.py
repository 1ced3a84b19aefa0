"""Does every kind of file say which request made it, and is what says nothing told?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.media import sound, video
from reverie.media.sound import Sound
from reverie.music.recording import Recording
from reverie.pipeline import Pipeline
from reverie.requests.music import Film, Music
from reverie.requests.music_records import SOUNDS, Carried, is_music, read, texts
from reverie.requests.pictures import TextToImage

ASKED = Music.of({"prompt": "爵士 “sax”", "seed": 3, "to": "blues @seed 4", "walk": 3, "bpm": 96, "negative": "drums"})


@pytest.fixture(scope="module")
def recording(player: Pipeline) -> Recording:
    return player.music("a bear", seed=7, steps=1, guidance=1.0, bpm=240)[0]


def test_suffixes_are_those_of_the_codec() -> None:
    assert tuple(sound.FORMATS) == SOUNDS


@pytest.mark.parametrize("suffix", [*SOUNDS, ".png", ".jpg", ".webp"])
def test_files_carry_their_request(recording: Recording, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"clip{suffix}"
    recording.save(file)
    assert is_music(file)
    assert read(file) == Carried(recording.request, "tiny")


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_requests_of_all_words_come_back(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    sound.write(Sound(torch.zeros(1, 8000), 8000), file, texts=texts(ASKED, "m"))
    assert read(file).music == ASKED


def test_a_film_carries_both_requests(tmp_path: Path) -> None:
    film, file = Film(prompts=("a bear",), move="jump"), tmp_path / "a.mp4"
    told = texts(ASKED, "m", film)
    video.write([Image.new("RGB", (16, 16))], file, 12, texts={"reverie": told["comment"], "title": told["title"]})
    assert is_music(file)
    assert read(file) == Carried(ASKED, "m", film)


def test_what_a_request_leaves_open_takes_no_room() -> None:
    request = json.loads(texts(Music(seed=1), "m")["comment"])["request"]
    assert not {"to", "alpha", "walk", "init", "mask", "prompt"} & request.keys()
    assert len(texts(Music(seed=1, prompt="x" * 1000), "m")["comment"]) < 1_500


def test_what_is_no_music_is_told(tmp_path: Path, tiny: Pipeline) -> None:
    plain, damaged, picture = (tmp_path / name for name in ("plain.wav", "damaged.wav", "picture.png"))
    sound.write(Sound(torch.zeros(1, 8000), 8000), plain)
    sound.write(Sound(torch.zeros(1, 8000), 8000), damaged, texts={"comment": '{"model": 3}'})
    tiny.draw(TextToImage(seed=1, steps=1))[0].save(picture)
    with pytest.raises(ReverieError, match="holds no request of reverie's"):
        read(plain)
    with pytest.raises(ReverieError, match="is damaged: KeyError"):
        read(damaged)
    assert not is_music(picture)
    assert not is_music(tmp_path / "gone.mp4")
    assert texts(Music(seed=1), "m").keys() == {"comment"}
    assert texts(ASKED, "m")["title"] == "爵士 “sax” → blues"
