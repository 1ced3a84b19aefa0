"""Does a request refuse what cannot be drawn in one clear line, and survive JSON?"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from reverie.diffusion.samplers import SAMPLERS as SOLVERS
from reverie.diffusion.spacings import SPACINGS
from reverie.errors import ReverieError
from reverie.requests.base import MAX_SEED, Request
from reverie.requests.films import Animation
from reverie.requests.music import Music
from reverie.requests.pictures import ImageToImage, TextToImage
from reverie.requests.records import KINDS
from reverie.requests.samplers import SAMPLERS, SCHEDULES


def test_names_are_those_of_diffusion() -> None:
    assert set(SAMPLERS) == set(SOLVERS)
    assert set(SCHEDULES) == set(SPACINGS)


def test_requests_need_no_torch() -> None:
    code = "import sys, reverie.requests.pictures, reverie.requests.records; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("steps", 0, "steps 0 is not possible; it should be greater than or equal to 1"),
        ("steps", 2.5, "steps 2.5 is not possible; it should be a valid integer"),
        ("width", 100, "width 100 is not possible; it should be a multiple of 8"),
        ("height", 0, "height 0 is not possible; it should be greater than or equal to 8"),
        ("count", 0, "count 0 is not possible; it should be greater than or equal to 1"),
        ("seed", -2, "seed -2 is not possible; it should be greater than or equal to 0"),
        ("seed", 2**32, "seed 4294967296 is not possible; it should be less than or equal to 4294967295"),
        ("guidance", float("nan"), "guidance nan is not possible; it should be a finite number"),
        ("guidance", float("inf"), "guidance inf is not possible; it should be a finite number"),
        ("guidance", -1.0, "guidance -1.0 is not possible; it should be greater than or equal to 0"),
        ("guidance_rescale", 2, "guidance_rescale 2 is not possible; it should be less than or equal to 1"),
        ("threshold", 0, "threshold 0 is not possible; it should be greater than 0"),
        ("sampler", "eulr", "unknown sampler 'eulr'; did you mean 'euler'? choose from ddpm, ddim, plms, euler, "),
        ("schedule", "no such thing", "unknown schedule 'no such thing'; choose from normal, karras, "),
        ("prompt", 3, "prompt 3 is not possible; it should be a valid string"),
        ("stepz", 3, "unknown option 'stepz'; did you mean 'steps'? choose from guidance, negative, seed, steps, "),
    ],
)
def test_refusals(field: str, value: object, told: str) -> None:
    with pytest.raises(ReverieError) as caught:
        TextToImage(**{field: value})
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_several_faults_are_named() -> None:
    with pytest.raises(ReverieError, match=r"^steps 0 is .* \(wrong too: count\)$"):
        TextToImage(steps=0, count=0)


def test_the_seeds_of_all_pictures_must_fit() -> None:
    assert TextToImage(seed=MAX_SEED).seed == MAX_SEED
    with pytest.raises(ReverieError, match=r"^seed 4294967295 with count 2 passes the largest seed, 4294967295; lower"):
        TextToImage(seed=MAX_SEED, count=2)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    seeds = {request.seed for request in (TextToImage(), TextToImage(), TextToImage(seed=None), TextToImage(seed=None))}
    assert len(seeds) == 4


def test_requests_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TextToImage().steps = 3  # type: ignore[misc]


def test_replace_checks_again() -> None:
    request = TextToImage(prompt="a bear", seed=7, count=4)
    assert request.replace(steps=3).model_dump() == {**request.model_dump(), "steps": 3}
    assert request.only(2) == request.replace(seed=9, count=1)
    with pytest.raises(ReverieError, match="steps 0"):
        request.replace(steps=0)


@settings(deadline=None, max_examples=50)
@given(
    prompt=st.text(),
    negative=st.text(),
    seed=st.integers(0, MAX_SEED - 8),
    count=st.integers(1, 9),
    guidance=st.floats(0, 100),
    sampler=st.sampled_from(SAMPLERS),
    width=st.none() | st.integers(1, 100).map(lambda n: 8 * n),
)
def test_json_round_trip(**fields: object) -> None:
    request = TextToImage(**fields)
    text = request.to_json()
    assert "\n" not in text
    assert TextToImage.from_json(text) == request


def test_broken_json() -> None:
    with pytest.raises(ReverieError, match=r"^request is not JSON: "):
        TextToImage.from_json("{")
    with pytest.raises(ReverieError, match=r"^request must be a JSON object, not list$"):
        TextToImage.from_json("[]")


def test_seed_minus_one_is_random_as_in_automatic1111() -> None:
    assert len({TextToImage(seed=-1).seed for _ in range(3)}) > 1


def test_json_names_its_kind_and_is_read_as_that() -> None:
    requests = [
        TextToImage(prompt="a bear", seed=1),
        ImageToImage(init=Image.new("RGB", (8, 8)), seed=1),
        Animation(keyframes=("a", "b"), seed=1),
        Music(prompt="jazz", seed=1, to="blues", alpha=1),
    ]
    assert {request.kind for request in requests} <= KINDS.keys()
    for request in requests:
        back = Request.from_json(request.to_json())
        assert (type(back), back) == (type(request), request)
    assert TextToImage.from_json('{"prompt": "a bear", "seed": 1}') == requests[0]
    assert isinstance(TextToImage.from_json(requests[1].to_json()), ImageToImage)
    with pytest.raises(ReverieError, match="unknown kind 'music'; choose from text_to_image, image_to_image"):
        TextToImage.from_json(requests[3].to_json())
    with pytest.raises(ReverieError, match="unknown kind ''"):
        Request.from_json("{}")
    with pytest.raises(ReverieError, match=r"unknown kind \['music'\]"):
        Request.from_json('{"kind": ["music"]}')


def test_errors_name_their_field() -> None:
    for fields, field in (({"steps": 0}, "steps"), ({"guidance_interval": (1, 0)}, "guidance_interval")):
        with pytest.raises(ReverieError) as caught:
            TextToImage.of(fields)
        assert caught.value.field == field
