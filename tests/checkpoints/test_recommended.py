"""Does a model say how it wants to be guided, and is it heard?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import reverie
from reverie import Pipeline, ReverieError, TextToImage
from reverie.checkpoints.load import RECOMMENDED, Recommended
from reverie.requests.records import from_metadata

BEAR = TextToImage(prompt="a bear", seed=7, steps=2)


def test_a_request_that_says_nothing_follows_the_model(tiny: Pipeline, tmp_path: Path) -> None:
    replace(tiny, recommended=Recommended(guidance=1.5)).save(tmp_path)
    model = reverie.load(tmp_path, device="cpu")
    picture = model.draw(BEAR)[0]
    assert from_metadata(picture).guidance == 1.5
    assert "CFG scale: 1.5," in picture.info["parameters"]
    assert picture.tobytes() == model.draw(BEAR.replace(guidance=1.5))[0].tobytes()
    assert picture.tobytes() != model.draw(BEAR.replace(guidance=5))[0].tobytes()
    tiny.save(tmp_path)  # which recommends nothing
    assert not (tmp_path / RECOMMENDED).exists()
    assert reverie.load(tmp_path, device="cpu").guidance == 5


@pytest.mark.parametrize("value", ['"strong"', "-1", "NaN", "true"])
def test_what_is_no_guidance_is_refused(value: str, tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / RECOMMENDED).write_text(f'{{"guidance": {value}}}')
    with pytest.raises(ReverieError, match=r"recommended.json recommends what cannot be: guidance: "):
        reverie.load(tmp_path, device="cpu")


def test_what_a_request_leaves_open_is_the_models(tiny: Pipeline, tmp_path: Path) -> None:
    few = Recommended(guidance=1.0, steps=3, sampler="euler", schedule="trailing")
    replace(tiny, recommended=few).save(tmp_path)
    model = reverie.load(tmp_path, device="cpu")
    assert model.recommended == few
    open_request = TextToImage(prompt="a bear", seed=7)
    made = from_metadata(model.draw(open_request)[0])
    assert (made.guidance, made.steps, made.sampler, made.schedule) == (1.0, 3, "euler", "trailing")
    said = from_metadata(model.draw(open_request.replace(steps=20, sampler="dpmpp_2m"))[0])
    assert (said.steps, said.sampler, said.schedule) == (20, "dpmpp_2m", "trailing")
    assert model.draw(made)[0].tobytes() == model.draw(open_request)[0].tobytes()


def test_the_bundled_models_recommend_theirs() -> None:
    assert reverie.load(device="cpu").guidance == 2
    assert reverie.load("reverie-music", device="cpu").guidance == 3
