"""Pictures, films and sounds say which request made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from reverie.errors import ReverieError
from reverie.media import sound, video
from reverie.media.pictures import save
from reverie.media.sound import Sound
from reverie.music.sections import Recording
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record, from_metadata, read_record, texts, with_upscaler
from reverie.requests.texts import SOUNDS

REQUEST = TextToImage(prompt="一只熊, a bear", negative="red", seed=7, width=128, height=64, guidance=5)


def picture_of(request: TextToImage) -> Image.Image:
    picture = Image.new("RGB", (request.width or 8, request.height or 8))
    picture.info.update(texts(request, "my model"))
    return picture


def test_parameters_of_automatic1111() -> None:
    assert texts(REQUEST, "my model")["parameters"] == (
        "一只熊, a bear\nNegative prompt: red\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 128x64, Model: my model, "
        "RNG: CPU"
    )
    fancy = REQUEST.replace(guidance=4.5, guidance_rescale=0.7, threshold=0.995, schedule="trailing", negative="")
    assert texts(fancy, "m")["parameters"].endswith(
        "Schedule type: trailing, CFG scale: 4.5, Seed: 7, Size: 128x64, Model: m, RNG: CPU, "
        "CFG Rescale: 0.7, Dynamic thresholding: 0.995"
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    picture, file = picture_of(REQUEST), tmp_path / f"x.{suffix}"
    save(picture, file)
    assert read_record(picture) == read_record(file) == Record(REQUEST, "my model")
    assert from_metadata(file) == from_metadata(str(file)) == REQUEST


def test_what_became_of_a_picture_since_is_said(tmp_path: Path) -> None:
    larger = picture_of(REQUEST).resize((256, 128))
    assert read_record(larger).notes == ("the picture was brought from 128x64 pixels to 256x128 since",)
    for upscaler in ("4x.pth", "1x.pth"):
        larger.info["reverie"] = with_upscaler(larger.info["reverie"], f"models/{upscaler}")
    save(larger, file := tmp_path / "larger.jpg")
    said = "the picture was enlarged by '4x.pth, 1x.pth' since; do it with `reverie upscale`"
    assert read_record(file).notes == (said,)
    assert with_upscaler("no JSON", "4x.pth") == "no JSON"
    twice = REQUEST.replace(hires={"scale": 2.0, "width": 256, "height": 128})
    assert read_record(picture_of(twice).resize((256, 128))).notes == ()


def test_refusals() -> None:
    picture = Image.new("RGB", (8, 8))
    cases = {
        None: "^this picture does not say how it was made",
        "{": "^the file's 'reverie' text is damaged",
        "[]": "^the file's 'reverie' text is damaged",
        json.dumps({"kind": "music", "model": "m"}): "^the file's 'reverie' text is damaged",
        json.dumps({"kind": "poem", "model": "m", "request": {}}): "^the file was made by a request of kind 'poem'",
        json.dumps({"kind": "text_to_image", "model": "m", "request": {"steps": 0}}): "^steps 0 is not possible",
    }
    for text, told in cases.items():
        if text is not None:
            picture.info["reverie"] = text
        with pytest.raises(ReverieError, match=told):
            from_metadata(picture)


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
    assert read_record(file) == Record(recording.request, "tiny")


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_requests_of_all_words_come_back(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    sound.write(Sound(torch.zeros(1, 8000), 8000), file, texts=texts(ASKED, "m"))
    assert from_metadata(file) == ASKED


def test_a_film_carries_both_requests(tmp_path: Path) -> None:
    film, file = Film(prompts=("a bear",), move="jump"), tmp_path / "a.mp4"
    video.write([Image.new("RGB", (16, 16))], file, 12, texts=texts(ASKED, "m", film))
    assert read_record(file) == Record(ASKED, "m", film=film)


def test_what_a_request_leaves_open_takes_no_room() -> None:
    request = json.loads(texts(Music(seed=1), "m")["reverie"])["request"]
    assert not {"to", "alpha", "walk", "init", "mask", "prompt"} & request.keys()
    assert len(texts(Music(seed=1, prompt="x" * 1000), "m")["reverie"]) < 1_500


def test_what_says_nothing_or_is_damaged_is_refused(tmp_path: Path) -> None:
    plain, damaged = (tmp_path / name for name in ("plain.wav", "damaged.wav"))
    sound.write(Sound(torch.zeros(1, 8000), 8000), plain)
    sound.write(Sound(torch.zeros(1, 8000), 8000), damaged, texts={"comment": '{"model": 3}'})
    with pytest.raises(ReverieError, match="does not say how it was made"):
        read_record(plain)
    with pytest.raises(ReverieError, match="is damaged: KeyError"):
        read_record(damaged)


def test_titles_are_the_prompts() -> None:
    assert texts(Music(seed=1), "m").keys() == {"reverie"}
    assert texts(ASKED, "m")["title"] == "爵士 “sax” → blues"
    assert texts(Animation(keyframes=("a", "b"), seed=1), "m")["title"] == "a → b"
