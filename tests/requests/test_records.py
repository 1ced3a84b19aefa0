"""Does a picture tell which request made it?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import save
from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record, from_metadata, read_record
from reverie.requests.samplers import RECORDS, SAMPLERS
from reverie.requests.writing import picture_texts

REQUEST = TextToImage(prompt="一只熊, a bear", negative="red", seed=7, width=128, height=64, guidance=5)


def picture_of(request: TextToImage) -> Image.Image:
    picture = Image.new("RGB", (8, 8))
    picture.info.update(picture_texts(request, "my model"))
    return picture


def test_every_sampler_has_a_label() -> None:
    assert set(RECORDS) == set(SAMPLERS)


def test_parameters_of_automatic1111() -> None:
    assert picture_texts(REQUEST, "my model")["parameters"] == (
        "一只熊, a bear\nNegative prompt: red\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 128x64, Model: my model, "
        "RNG: CPU"
    )
    fancy = REQUEST.replace(guidance=4.5, guidance_rescale=0.7, threshold=0.995, schedule="trailing", negative="")
    assert picture_texts(fancy, "m")["parameters"].endswith(
        "Schedule type: trailing, CFG scale: 4.5, Seed: 7, Size: 128x64, Model: m, RNG: CPU, "
        "CFG Rescale: 0.7, Dynamic thresholding: 0.995"
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    picture, file = picture_of(REQUEST), tmp_path / f"x.{suffix}"
    save(picture, file)
    assert read_record(picture) == read_record(file) == Record(REQUEST, "my model")
    assert from_metadata(file) == from_metadata(str(file)) == REQUEST


def test_refusals() -> None:
    picture = Image.new("RGB", (8, 8))
    cases = {
        None: "^this picture holds no request",
        "{": "^the 'reverie' text of this picture is damaged",
        "[]": "^the 'reverie' text of this picture is damaged",
        json.dumps(
            {"kind": "dance", "model": "m", "request": {}}
        ): "^this picture was made by a request of kind 'dance'",
        json.dumps({"kind": "text_to_image", "model": "m", "request": {"steps": 0}}): "^steps 0 is not possible",
    }
    for text, told in cases.items():
        if text is not None:
            picture.info["reverie"] = text
        with pytest.raises(ReverieError, match=told):
            from_metadata(picture)
