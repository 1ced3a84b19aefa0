"""OpenAI's images API, spoken by OpenAI's own Python SDK."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

import reverie
from reverie.requests.records import from_metadata

OWN = {"seed": 7, "steps": 2}


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as sdk:
        yield sdk


def decoded(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def file(picture: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "picture.png", buffer.getvalue()


def test_generations_are_the_librarys_pictures(sdk: OpenAI, model_folder: Path) -> None:
    answer = sdk.images.generate(prompt="a bear", model="tiny", n=2, extra_body=OWN | {"negative_prompt": "snow"})
    drawn = reverie.load(model_folder / "tiny").text_to_image("a bear", negative="snow", seed=7, steps=2, count=2)
    for one, picture in zip(answer.data or [], drawn, strict=True):
        assert decoded(one.b64_json).tobytes() == picture.tobytes()
    assert (answer.size, answer.output_format, answer.background) == ("32x32", "png", "opaque")


def test_size_format_and_compression_are_honoured_and_the_request_stays_inside(sdk: OpenAI) -> None:
    lengths = []
    for quality in (10, 95):
        answer = sdk.images.generate(
            prompt="a bear",
            size="64x32",  # type: ignore[arg-type]
            output_format="jpeg",
            output_compression=quality,
            extra_body=OWN,
        )
        (one,) = answer.data or []
        picture = decoded(one.b64_json)
        assert (picture.format, picture.size) == ("JPEG", (64, 32))
        assert from_metadata(picture).prompts == ("a bear",)
        lengths.append(len(one.b64_json or ""))
    assert lengths[0] < lengths[1]


def test_an_address_gives_the_picture_to_whoever_has_the_key(sdk: OpenAI) -> None:
    (one,) = sdk.images.generate(prompt="a bear", response_format="url", extra_body=OWN).data or []
    assert one.url is not None
    assert httpx.get(one.url).status_code == 401
    found = httpx.get(one.url, auth=("anyone", "secret"))
    assert Image.open(io.BytesIO(found.content)).size == (32, 32)


def test_a_stream_gives_partial_pictures_and_the_whole(sdk: OpenAI) -> None:
    body = {"seed": 7, "steps": 150}
    events = list(sdk.images.generate(prompt="a bear", stream=True, partial_images=2, extra_body=body))
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed"
    assert set(kinds[:-1]) == {"image_generation.partial_image"}
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(kinds) - 1))  # type: ignore[union-attr]
    (whole,) = sdk.images.generate(prompt="a bear", extra_body=body).data or []
    assert decoded(events[-1].b64_json).tobytes() == decoded(whole.b64_json).tobytes()


def test_an_edit_paints_where_the_mask_is_transparent(sdk: OpenAI) -> None:
    picture = Image.new("RGB", (96, 32), "red")
    mask = Image.new("RGBA", (96, 32), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    answer = sdk.images.edit(image=file(picture), mask=file(mask), prompt="a bear", extra_body=OWN)
    (one,) = answer.data or []
    edited = decoded(one.b64_json)
    assert edited.crop((64, 0, 96, 32)).getcolors() == [(1024, (255, 0, 0))]
    assert edited.crop((0, 0, 8, 32)).getcolors() != [(256, (255, 0, 0))]


def test_edits_without_a_mask_and_variations_start_from_the_picture(sdk: OpenAI, model_folder: Path) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    edit = sdk.images.edit(image=[file(picture)], prompt="a bear", extra_body=OWN | {"strength": 0.5})
    drawn = reverie.load(model_folder / "tiny").image_to_image("a bear", picture, strength=0.5, seed=7, steps=2)
    assert decoded((edit.data or [])[0].b64_json).tobytes() == drawn[0].tobytes()
    with pytest.deprecated_call():  # with DALL-E 2, by the SDK
        varied = sdk.images.create_variation(image=file(drawn[0]), n=2, extra_body={"steps": 4})
    assert len(varied.data or []) == 2


def test_a_client_that_goes_away_takes_its_job_with_it(sdk: OpenAI, url: str) -> None:
    long = {"seed": 7, "steps": 1000}
    with pytest.raises(openai.APITimeoutError):
        sdk.images.generate(prompt="a bear that nobody waits for", n=8, timeout=0.5, extra_body=long)
    with httpx.Client(base_url=url, auth=("", "secret")) as http:
        for _ in range(500):
            job = http.get("/api/jobs", params={"limit": 1}).json()["jobs"][0]
            if job["state"] == "cancelled":
                break
            time.sleep(0.02)
    assert (job["request"]["prompt"], job["state"]) == ("a bear that nobody waits for", "cancelled")


def test_models_are_listed(sdk: OpenAI) -> None:
    assert "tiny" in {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("other")


def test_what_cannot_be_is_said_in_the_sdks_own_errors(sdk: OpenAI, url: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="opaque") as caught:
        sdk.images.generate(prompt="a bear", background="transparent")
    assert caught.value.param == "background"
    with pytest.raises(openai.UnprocessableEntityError, match="there is no model 'other' here"):
        sdk.images.generate(prompt="a bear", model="other")
    with pytest.raises(openai.UnprocessableEntityError, match="n: "):
        sdk.images.generate(prompt="a bear", n=11)
    with pytest.raises(openai.UnprocessableEntityError, match="2 pictures"):
        sdk.images.edit(image=[file(Image.new("RGB", (32, 32)))] * 2, prompt="a bear")
    with (
        OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()
