"""Jobs over HTTP: what is drawn is what the library draws, events come in order, and nothing asked for is lost."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import reverie
from reverie.diffusion.windows import Tiles
from reverie.requests.records import with_upscaler
from reverie.server.settings import Limits, Settings
from reverie.server.submissions import Options, check_limits

Json = dict[str, Any]
Finish = Callable[[Json], Json]
BEAR = {"prompt": "a bear", "seed": 7, "steps": 2}


def png(size: tuple[int, int] = (32, 32), colour: object = "red", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def fetch(client: TestClient, job: Json, index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(client.get(job["files"][index]["url"]).content))


def test_pictures_are_those_of_the_library(client: TestClient, finish: Finish, model_folder: Path) -> None:
    job = finish({"kind": "text_to_image", "request": {**BEAR, "count": 2}})
    assert (job["state"], job["model"], job["result"]["seeds"]) == ("done", "tiny", [7, 8])
    drawn = reverie.load(model_folder / "tiny").text_to_image("a bear", seed=7, steps=2, count=2)
    for index, picture in enumerate(drawn):
        assert fetch(client, job, index).tobytes() == picture.tobytes()


def test_what_a_file_says_of_itself_can_be_submitted_again(client: TestClient, finish: Finish) -> None:
    first = finish({"kind": "image_to_image", "request": {**BEAR, "init": url(png()), "strength": 0.5}})
    said = client.post("/api/inspect", json={"file": first["files"][0]["name"]}).json()
    assert said.pop("notes") == []
    second = finish(said)
    assert fetch(client, second).tobytes() == fetch(client, first).tobytes()
    assert fetch(client, first).text["reverie"].count("/") == 0  # type: ignore[attr-defined]


def test_events_tell_a_job_from_its_state_to_its_end(client: TestClient) -> None:
    body = {"kind": "text_to_image", "request": {**BEAR, "steps": 150}, "options": {"previews": 50}}
    job = client.post("/api/jobs", json=body).json()
    told = client.get(f"/api/jobs/{job['id']}/events").text
    events = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1], events[-1]["job"]["state"]) == ("state", "state", "done")
    assert {"progress", "preview", "file"} <= set(kinds)
    done = [event["done"] for event in events if event["type"] == "progress"]
    assert done == sorted(done)
    assert done[-1] == 150
    preview = next(event for event in events if event["type"] == "preview")
    assert Image.open(io.BytesIO(base64.b64decode(preview["image"].partition(",")[2]))).format == "JPEG"


def test_a_websocket_watches_and_cancels(client: TestClient) -> None:
    body = {"kind": "text_to_image", "request": {**BEAR, "steps": 1000, "count": 8}}
    with client.websocket_connect("/api/ws") as socket:
        socket.send_json({"type": "watch", "id": "*"})
        job = client.post("/api/jobs", json=body).json()
        while socket.receive_json()["type"] != "progress":
            pass
        socket.send_json({"type": "cancel", "id": job["id"]})
        while (event := socket.receive_json())["type"] != "state":
            pass
    assert (event["id"], event["job"]["state"]) == (job["id"], "cancelled")
    assert client.get(f"/api/jobs/{job['id']}").json()["state"] == "cancelled"


def test_a_queued_job_is_cancelled_at_once(client: TestClient) -> None:
    body = {"kind": "text_to_image", "request": {**BEAR, "steps": 1000}}
    first, second = (client.post("/api/jobs", json=body).json() for _ in range(2))
    assert (second["state"], second["position"]) == ("queued", 0)
    assert client.delete(f"/api/jobs/{second['id']}").json()["state"] == "cancelled"
    client.delete(f"/api/jobs/{first['id']}")


def test_a_seed_that_is_left_open_is_told(finish: Finish) -> None:
    job = finish({"kind": "text_to_image", "request": {"prompt": "a bear", "steps": 1, "seed": -1}})
    assert job["result"]["seeds"] == [job["request"]["seed"]]


def test_templates_and_styles_are_drawn_as_the_command_line_draws_them(client: TestClient, finish: Finish) -> None:
    """See tests/cli/test_many.py."""
    body: Json = {"kind": "text_to_image", "dynamic": True, "style": ["ink", {"prompt": "{prompt}, once"}]}
    body["request"] = {"prompt": "a {red|blue} __animals__", "seed": 1, "steps": 1, "count": 3}
    job = finish(body)
    words = ["a blue bear in ink, once", "a red bear in ink, once", "a blue bear in ink, once"]
    assert [one["prompt"] for one in job["result"]["requests"]] == words
    assert fetch(client, job, 1).text["parameters"].startswith("a red bear in ink, once\nNegative prompt: oil")  # type: ignore[attr-defined]


def test_one_style_and_one_format_need_no_list(client: TestClient, finish: Finish) -> None:
    job = finish({"kind": "text_to_image", "request": BEAR, "style": "ink", "options": {"formats": "webp"}})
    assert (job["request"]["prompt"], fetch(client, job).format) == ("a bear in ink", "WEBP")


def test_a_picture_is_enlarged_and_keeps_what_it_says(client: TestClient, finish: Finish) -> None:
    job = finish({"kind": "text_to_image", "request": BEAR})
    asked = {"picture": job["files"][0]["name"], "upscaler": "ink-4x.pth"}
    larger = finish({"kind": "upscale", "request": asked})
    assert larger["state"] == "done"
    assert fetch(client, larger).size == (128, 128)
    ours, drawn = (dict(fetch(client, one).text) for one in (larger, job))  # type: ignore[attr-defined]
    assert ours == drawn | {"reverie": with_upscaler(drawn["reverie"], "ink-4x.pth")}
    assert larger["result"]["request"]["prompt"] == "a bear"
    assert client.get("/api/adapters").json()["upscalers"] == ["ink-4x.pth"]


def test_a_failure_says_why_without_folders(finish: Finish, settings: Settings) -> None:
    job = finish({"kind": "text_to_image", "request": {**BEAR, "prompt": "a bear <lora:broken:1>"}})
    assert job["state"] == "failed"
    assert "broken.safetensors" in job["error"]
    assert "/" not in job["error"].replace("http://", "")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"kind": "text_to_image", "request": {**BEAR, "steps": 0}}, 422, "steps"),
        ({"kind": "text_to_image", "request": {**BEAR, "stps": 3}}, 422, "stps"),
        ({"kind": "text_to_image", "request": {**BEAR, "steps": 1001}}, 422, "steps"),
        ({"kind": "text_to_image", "request": {**BEAR, "count": 9}}, 422, "count"),
        ({"kind": "text_to_image", "request": {**BEAR, "width": 512, "height": 512}}, 422, "width"),
        ({"kind": "text_to_image", "request": BEAR, "model": "other"}, 422, "model"),
        ({"kind": "text_to_image", "request": BEAR, "options": {"formats": ["exe"]}}, 422, "formats"),
        ({"kind": "painting", "request": BEAR}, 422, "kind"),
        ({"kind": "image_to_image", "request": {**BEAR, "init": "data:image/png;base64,AAAA"}}, 422, None),
        ({"kind": "image_to_image", "request": {**BEAR, "init": "../jobs.sqlite3"}}, 422, "init"),
        ({"kind": "text_to_image", "request": {**BEAR, "prompt": "a bear <lora:nowhere:1>"}}, 422, None),
        ({"kind": "text_to_image", "request": {**BEAR, "prompt": "{<lora:nowhere:1>}"}, "dynamic": True}, 422, None),
        ({"kind": "text_to_image", "request": {**BEAR, "prompt": "__none__"}, "dynamic": True}, 422, "wildcards"),
        ({"kind": "text_to_image", "request": BEAR, "style": ["oil"]}, 422, "style"),
        ({"kind": "text_to_image", "request": {**BEAR, "prompt": {}}, "style": ["ink"]}, 422, "style"),
        ({"kind": "music", "request": {"prompt": "jazz"}, "dynamic": True}, 422, "dynamic"),
        ({"kind": "music", "request": {"prompt": "jazz"}, "options": {"watermark": "mine"}}, 422, "watermark"),
        ({"kind": "text_to_image", "request": BEAR, "film": {"prompts": ["a bear"]}}, 422, "film"),
        ({"kind": "animation", "request": {"keyframes": ["a", "b"]}, "style": ["ink"]}, 422, "style"),
        ({"kind": "text_to_image", "request": BEAR, "style": 3}, 422, "style"),
        ({"kind": "upscale", "request": {"picture": url(png()), "upscaler": "other.pth"}}, 422, "upscaler"),
        ({"kind": "upscale", "request": {"picture": url(png((65, 64))), "upscaler": "ink-4x.pth"}}, 422, "picture"),
        ({"request": BEAR}, 422, "kind"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(client: TestClient, body: Json, status: int, param: str) -> None:
    answer = client.post("/api/jobs", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert "\n" not in error["message"]
    assert param is None or error["param"].endswith(param)


@pytest.mark.parametrize(
    ("width", "height", "hires", "side"),
    [(512, 512, None, 64), (1024, 520, None, 256), (256, 256, {"scale": 2}, 64), (256, 256, {"scale": 2}, 512)],
)
def test_tiles_are_counted_as_they_are_drawn(width: int, height: int, hires: Json | None, side: int) -> None:
    request = reverie.TextToImage(width=width, height=height, hires=hires, tile_size=side)  # type: ignore[arg-type]
    larger = 1 if hires is None else 2
    count = len(Tiles.over(height * larger // 8, width * larger // 8, side // 8).places)
    check_limits(request, Options(), Limits(tiles=count))
    with pytest.raises(reverie.ReverieError, match=f"asks for {count} tiles; this server allows {count - 1}"):
        check_limits(request, Options(), Limits(tiles=count - 1))


def test_files_are_ranged_tagged_and_named_by_content(client: TestClient) -> None:
    data = png((64, 64), "blue")
    (file,) = client.post("/api/files", files={"file": ("../../x.exe", data)}).json()["files"]
    assert (file["type"], file["bytes"]) == ("image/png", len(data))
    part = client.get(file["url"], headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    whole = client.get(file["url"])
    assert client.get(file["url"], headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    assert client.head(file["url"]).headers["content-length"] == str(len(data))
    for name in ("nothing.png", "..%2Fjobs.sqlite3", "%2Fetc%2Fpasswd"):
        assert client.get(f"/api/files/{name}").status_code == 404


def test_the_gallery_holds_what_was_made_until_it_is_deleted(client: TestClient, finish: Finish) -> None:
    job = finish({"kind": "text_to_image", "request": {**BEAR, "prompt": "a very special bear"}})
    unkept = finish({"kind": "text_to_image", "request": BEAR, "options": {"keep": False}})
    (found,) = client.get("/api/gallery", params={"query": "special"}).json()["jobs"]
    assert found["request"] == job["request"]
    assert unkept["id"] not in {one["id"] for one in client.get("/api/gallery").json()["jobs"]}
    assert client.delete(f"/api/gallery/{job['id']}").status_code == 204
    assert client.get(job["files"][0]["url"]).status_code == 404
    assert client.get("/api/gallery", params={"query": "special"}).json()["jobs"] == []


def test_live_draws_the_newest_canvas(client: TestClient, model_folder: Path) -> None:
    canvas = url(png(colour=(0, 0, 0, 0), mode="RGBA"))
    request = {"prompt": "a bear", "seed": 1, "steps": 2}
    with client.websocket_connect("/api/live") as socket:
        for number in range(8):
            body = {"kind": "inpaint", "request": {**request, "steps": 60, "init": canvas}}
            socket.send_json({"number": number, **body})
        pictures = []
        while not pictures or pictures[-1]["number"] != 7:
            event = socket.receive_json()
            assert event["type"] in ("picture", "progress")
            pictures += [event] if event["type"] == "picture" else []
        assert len(pictures) < 8
        words = {"kind": "text_to_image", "request": request}
        socket.send_json({"number": 8, **words, "request": {**request, "steps": 0}})
        assert socket.receive_json()["param"] == "steps"
        for number, steps in ((9, 1000), (10, 1)):
            socket.send_json(
                {"number": number, "urgent": number == 10, **words, "request": {**request, "steps": steps}}
            )
            while (event := socket.receive_json())["number"] == 9 and number == 9 and event["done"] < 5:
                pass
        while event["type"] != "picture":
            event = socket.receive_json()
        assert event["number"] == 10
    assert Image.open(io.BytesIO(base64.b64decode(pictures[-1]["image"].partition(",")[2]))).size == (32, 32)


def test_music_and_films_come_as_files(finish: Finish) -> None:
    film = finish({"kind": "animation", "request": {"keyframes": ["a bear", "an apple"], "frames": 4, "steps": 2}})
    assert film["state"] == "done", film["error"]
    assert [file["type"] for file in film["files"]] == ["video/mp4"]
    assert film["result"]["frames"] == 4


def test_clip_answers_questions(client: TestClient) -> None:
    told = client.post("/api/compare", json={"texts": ["a bear", "an apple"]}).json()
    assert told["rows"] == ["a bear", "an apple"]
    assert told["cosines"][0][0] == pytest.approx(1)
    pictures = [url(png(colour="red")), url(png(colour="blue"))]
    (first, _) = client.post("/api/classify", json={"pictures": pictures, "labels": ["red", "blue"]}).json()["guesses"]
    assert sum(guess["probability"] for guess in first) == pytest.approx(1)
    assert client.post("/api/compare", json={}).status_code == 422
    assert client.post("/api/classify", json={"pictures": pictures, "labels": []}).json()["error"]["param"] == "labels"


def test_what_is_known_is_told(client: TestClient, finish: Finish, settings: Settings) -> None:
    finish({"kind": "text_to_image", "request": BEAR})  # by which a worker loads the model
    models = {one["name"]: one for one in client.get("/api/models").json()["models"]}
    assert models["tiny"] | {"default": True, "loaded": True, "size": 32} == models["tiny"]
    assert (models["reverie-music"]["makes"], models["reverie-emoji"]["size"]) == ("music", 256)
    labels = {one["label"] for one in client.get("/api/samplers").json()["samplers"]}
    assert "DPM++ 2M" in labels
    assert any("panda" in one["en"] for one in client.get("/api/concepts").json()["concepts"])
    shared = client.get("/api/concepts", params={"model": "reverie-turbo"}).json()["concepts"]
    assert any("panda" in one["en"] for one in shared)
    assert client.get("/healthz").json() == {"status": "ok"}
    metrics = client.get("/metrics").text
    assert 'reverie_requests_total{method="GET",route="/api/models",status="200"}' in metrics
    assert str(settings.home) not in client.get("/api/info").text
