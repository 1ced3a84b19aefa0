"""Hugging Face's inference API, spoken by huggingface_hub's own client."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import reverie


@pytest.fixture(scope="module")
def hub(url: str) -> InferenceClient:
    return InferenceClient(model=url, token="secret")


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_text_to_image(hub: InferenceClient, url: str, model_folder: Path) -> None:
    picture = hub.text_to_image(
        "a bear",
        negative_prompt="snow",
        num_inference_steps=2,
        guidance_scale=3,
        scheduler="EulerDiscreteScheduler",
        seed=7,
        width=48,
        height=32,
    )
    (own,) = reverie.load(model_folder / "tiny").text_to_image(
        "a bear", negative="snow", steps=2, guidance=3, sampler="euler", seed=7, width=48, height=32
    )
    assert picture.tobytes() == own.tobytes()
    named = hub.text_to_image("a bear", model=f"{url}/models/tiny", num_inference_steps=2, seed=7)
    assert named.size == (32, 32)


def test_image_to_image(hub: InferenceClient, model_folder: Path) -> None:
    given = Image.new("RGB", (32, 32), "red")
    picture = hub.image_to_image(png(given), prompt="a bear", strength=0.5, num_inference_steps=4, seed=7)
    (own,) = reverie.load(model_folder / "tiny").image_to_image("a bear", given, strength=0.5, steps=4, seed=7)
    assert picture.tobytes() == own.tobytes()
    assert hub.image_to_image(png(given)).size == (32, 32)  # without anything else the body is the picture


def test_classification_and_embeddings_are_clips(hub: InferenceClient) -> None:
    clip, picture = reverie.load_clip(), Image.new("RGB", (64, 64), "green")
    labels = ["a bear", "an apple", "grass"]
    for template in (None, "a drawing of {}"):
        guesses = hub.zero_shot_image_classification(
            png(picture),
            candidate_labels=labels,
            hypothesis_template=template,
        )
        (own,) = clip.classify([picture], labels, template and [template])
        assert [one.label for one in guesses] == [one.label for one in own.guesses]
        assert [one.score for one in guesses] == pytest.approx([one.probability for one in own.guesses])
    found = hub.feature_extraction(labels)
    assert np.allclose(found, clip.embed_texts(labels), atol=1e-6)
    assert hub.feature_extraction("a bear").shape == (1, found.shape[1])


def test_what_cannot_be_is_said_in_one_line(hub: InferenceClient, url: str) -> None:
    with pytest.raises(HfHubHTTPError, match="unknown parameter 'quality'"):
        hub.text_to_image("a bear", extra_body={"quality": 3})
    with pytest.raises(HfHubHTTPError, match="there is no model 'other' here"):
        hub.text_to_image("a bear", model=f"{url}/models/other")
    with pytest.raises(HfHubHTTPError, match="prompt_name"):
        hub.feature_extraction("a bear", prompt_name="query")
    with pytest.raises(HfHubHTTPError, match="key is needed"):
        InferenceClient(model=url, token="wrong").text_to_image("a bear")
