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
from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record, read_record, recorded_kind
from reverie.requests.texts import SOUNDS
from reverie.requests.writing import music_texts

ASKED = Music.of({"prompt": "爵士 “sax”", "seed": 3, "to": "blues @seed 4", "walk": 3, "bpm": 96, "negative": "drums"})


@pytest.fixture(scope="module")
def recording(player: Pipeline) -> Recording:
    return player.music("a bear", seed=7, steps=1, guidance=1.0, bpm=240)[0]


def test_suffixes_are_those_of_the_codec() -> None:
    assert set(sound.FORMATS) <= set(SOUNDS)


@pytest.mark.parametrize("suffix", [*sound.FORMATS, ".png", ".jpg", ".webp"])
def test_files_carry_their_request(recording: Recording, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"clip{suffix}"
    recording.save(file)
    assert recorded_kind(file) == "music"
    assert read_record(file) == Record(recording.request, "tiny")


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_requests_of_all_words_come_back(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    sound.write(Sound(torch.zeros(1, 8000), 8000), file, texts=music_texts(ASKED, "m"))
    assert read_record(file).request == ASKED


def test_a_film_carries_both_requests(tmp_path: Path) -> None:
    film, file = Film(prompts=("a bear",), move="jump"), tmp_path / "a.mp4"
    told = music_texts(ASKED, "m", film)
    video.write([Image.new("RGB", (16, 16))], file, 12, texts={"reverie": told["comment"], "title": told["title"]})
    assert recorded_kind(file) == "music"
    assert read_record(file) == Record(ASKED, "m", film=film)


def test_what_a_request_leaves_open_takes_no_room() -> None:
    request = json.loads(music_texts(Music(seed=1), "m")["comment"])["request"]
    assert not {"to", "alpha", "walk", "init", "mask", "prompt"} & request.keys()
    assert len(music_texts(Music(seed=1, prompt="x" * 1000), "m")["comment"]) < 1_500


def test_what_is_no_music_is_told(tmp_path: Path, tiny: Pipeline) -> None:
    plain, damaged, picture = (tmp_path / name for name in ("plain.wav", "damaged.wav", "picture.png"))
    sound.write(Sound(torch.zeros(1, 8000), 8000), plain)
    sound.write(Sound(torch.zeros(1, 8000), 8000), damaged, texts={"comment": '{"model": 3}'})
    tiny.draw(TextToImage(seed=1, steps=1))[0].save(picture)
    with pytest.raises(ReverieError, match="does not say how it was made"):
        read_record(plain)
    with pytest.raises(ReverieError, match="is damaged: KeyError"):
        read_record(damaged)
    assert recorded_kind(picture) == "text_to_image"
    assert recorded_kind(tmp_path / "gone.mp4") is None
    assert music_texts(Music(seed=1), "m").keys() == {"comment"}
    assert music_texts(ASKED, "m")["title"] == "爵士 “sax” → blues"
