"""Riffusion's /run_inference/, with the body of riffusion-hobby 55651db, riffusion/datatypes.py."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from reverie.media.sound import read as read_sound
from reverie.requests.music import Music
from reverie.requests.records import from_metadata
from reverie.requests.references import content_of
from reverie.server.settings import Settings

BODY = {
    "alpha": 0.25,
    "num_inference_steps": 2,
    "seed_image_id": "og_beat",
    "start": {"prompt": "jazz", "seed": 42, "denoising": 1.0, "guidance": 7.0},
    "end": {"prompt": "blues", "seed": 123, "denoising": 1.0, "guidance": 3.0},
}


def test_a_clip_and_its_spectrogram(client: TestClient, settings: Settings) -> None:
    answer = client.post("/run_inference/", json=BODY)
    assert answer.status_code == 200, answer.text
    played = answer.json()
    assert played["audio"].startswith("data:audio/mpeg;base64,")
    assert Image.open(io.BytesIO(content_of(played["image"]))).format == "JPEG"
    assert "og_beat" in played["reverie_notes"][0]
    sound = settings.home / "played.mp3"
    sound.write_bytes(content_of(played["audio"]))
    assert played["duration_s"] == pytest.approx(read_sound(sound).seconds, abs=0.1)  # MP3 pads
    request = from_metadata(sound)
    assert isinstance(request, Music)
    assert (request.prompt, request.to[0].prompt, request.alpha) == ("jazz", "blues", 0.25)
    assert (request.seed, request.to[0].seed, request.guidance, request.to[0].guidance) == (42, 123, 7, 3)


def test_a_seed_image_of_that_name_says_how_long_the_clip_is(client: TestClient) -> None:
    spectrogram = io.BytesIO()
    Image.linear_gradient("L").resize((256, 128)).save(spectrogram, "PNG")
    (upload,) = client.post("/api/files", files={"file": spectrogram.getvalue()}).json()["files"]
    answer = client.post("/run_inference/", json=BODY | {"seed_image_id": Path(upload["name"]).stem})
    played = answer.json()
    assert answer.status_code == 200, answer.text
    assert not any("seed image" in note for note in played["reverie_notes"])
    assert Image.open(io.BytesIO(content_of(played["image"]))).size == (256, 128)


def test_what_is_missing_is_named(client: TestClient) -> None:
    answer = client.post("/run_inference/", json={key: BODY[key] for key in ("start", "end")})
    assert answer.status_code == 422
    assert json.loads(answer.text)["error"]["param"] == "alpha"
