"""ComfyUI's interface, asked as ComfyUI's own scripts ask it.

The sequences of requests are those of ComfyUI 0.3.64: script_examples/basic_api_example.py (a graph, as
application/x-www-form-urlencoded) and websockets_api_example.py (a WebSocket, a graph with an id of its own, messages
until `executing` names no node, then history and view). SillyTavern 1.13 (src/endpoints/stable-diffusion.js) reads
lists of /object_info and polls /history.
"""

from __future__ import annotations

import io
import json
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

import reverie
from reverie.requests.foreign.core_nodes import NODES
from reverie.requests.records import read_record
from reverie.requests.samplers import find_sampler, find_schedule

Json = dict[str, Any]
KEY = {"Authorization": "Bearer secret"}


def node(kind: str, **inputs: object) -> Json:
    return {"class_type": kind, "inputs": inputs}


def graph(sampler: Json | None = None, **nodes: Json) -> Json:
    """Give the graph of ComfyUI's examples, at the tiny model's size, with some inputs of the sampler changed."""
    inputs = {"seed": 7, "steps": 2, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}
    inputs |= {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "3": node("KSampler", **inputs | (sampler or {})),
        "4": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "5": node("EmptyLatentImage", width=32, height=32, batch_size=1),
        "6": node("CLIPTextEncode", text="a bear", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="snow", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="ComfyUI"),
    } | {name.removeprefix("n"): one for name, one in nodes.items()}


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=KEY) as http:
        yield http


@pytest.fixture
def socket(url: str) -> Iterator[ClientConnection]:
    address = url.replace("http", "ws") + "/ws?clientId=script"
    with connect(address, additional_headers=KEY, close_timeout=1) as socket:
        yield socket


def queue_prompt(url: str, nodes: Json, **fields: object) -> Json:
    """Queue as the scripts do: by urllib, which says that the body is a form."""
    body = json.dumps({"prompt": nodes, "client_id": "script"} | fields).encode()
    request = urllib.request.Request(f"{url}/prompt", data=body, headers=KEY)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def messages(socket: ClientConnection, prompt: str) -> Iterator[Json | bytes]:
    """Yield what comes until the prompt is over."""
    while True:
        message = socket.recv(timeout=60)
        if isinstance(message, bytes):
            yield message
            continue
        told = json.loads(message)
        yield told
        if told["type"] == "executing" and told["data"] == {"node": None, "prompt_id": prompt}:
            return


def draw(url: str, socket: ClientConnection, http: httpx.Client, nodes: Json) -> list[Image.Image]:
    """Do what websockets_api_example.py does."""
    prompt = str(uuid.uuid4())
    assert queue_prompt(url, nodes, prompt_id=prompt)["prompt_id"] == prompt
    list(messages(socket, prompt))
    outputs = http.get(f"/history/{prompt}").json()[prompt]["outputs"]
    views = [http.get("/view", params=image) for output in outputs.values() for image in output["images"]]
    return [Image.open(io.BytesIO(view.content)) for view in views]


def test_a_graph_draws_what_the_library_draws(
    url: str, socket: ClientConnection, http: httpx.Client, model_folder: Path
) -> None:
    nodes = graph(n5=node("EmptyLatentImage", width=32, height=32, batch_size=2))
    pictures = draw(url, socket, http, nodes)
    options = {"sampler": "euler", "schedule": "normal", "guidance": 7.5, "rng": "cpu_then_gpu", "count": 2}
    drawn = reverie.load(model_folder / "tiny").text_to_image(
        "a bear", negative="snow", seed=7, steps=2, **options, zero_negative=False
    )
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in drawn]
    assert read_record(pictures[0]).request.prompts == ("a bear",)


def test_the_socket_tells_as_comfyui_does(url: str, socket: ClientConnection) -> None:
    hello = json.loads(socket.recv())
    assert hello["type"] == "status"
    assert hello["data"]["sid"] == "script"
    assert hello["data"]["status"] == {"exec_info": {"queue_remaining": 0}}
    other = queue_prompt(url, graph(), client_id="other")["prompt_id"]
    prompt = queue_prompt(url, graph({"steps": 60}))["prompt_id"]
    told = list(messages(socket, prompt))
    texts = [one for one in told if isinstance(one, dict)]
    assert other not in json.dumps(texts)
    kinds = [one["type"] for one in texts if one["type"] != "status"]
    assert [kind for kind in kinds if kind != "progress"] == [
        "execution_start",
        "execution_cached",
        "executing",
        "executed",
        "execution_success",
        "executing",
    ]
    steps = [one["data"] for one in texts if one["type"] == "progress"]
    assert steps[-1] == {"node": "3", "value": 60, "max": 60, "prompt_id": prompt}
    previews = [one for one in told if isinstance(one, bytes)]
    assert previews
    assert previews[0][:8] == b"\0\0\0\1\0\0\0\1"
    assert Image.open(io.BytesIO(previews[0][8:])).format == "JPEG"


def test_a_prompt_that_fails_is_told_as_an_error(url: str, socket: ClientConnection, http: httpx.Client) -> None:
    """A LoRA's file that holds nothing is found out by the worker; SillyTavern reads the error in the history."""
    lora = node("LoraLoader", model=["4", 0], clip=["4", 1], lora_name="broken.safetensors", strength_model=0.5)
    lora["inputs"]["strength_clip"] = 0.5
    prompt = queue_prompt(url, graph({"model": ["10", 0]}, n10=lora))["prompt_id"]
    texts = [one for one in messages(socket, prompt) if isinstance(one, dict)]
    error = texts[-2]["data"] if texts[-1]["type"] == "executing" else {}
    assert (texts[-2]["type"], error["node_id"], error["node_type"]) == ("execution_error", "3", "KSampler")
    assert "broken" in error["exception_message"]
    status = http.get(f"/history/{prompt}").json()[prompt]["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    assert status["messages"][-1] == ["execution_error", error]


def test_a_picture_that_was_uploaded_is_drawn_over_under_its_mask(
    url: str, socket: ClientConnection, http: httpx.Client
) -> None:
    picture, buffer = Image.new("RGBA", (96, 32), "red"), io.BytesIO()
    picture.paste((0, 0, 0, 0), (0, 0, 16, 32))
    picture.save(buffer, "PNG")
    kept = http.post("/api/upload/image", files={"image": ("mine.png", buffer.getvalue())}, data={"type": "input"})
    load = {"n10": node("LoadImage", image="mine.png")}  # as scripts do that do not read the answer
    encode = node("VAEEncodeForInpaint", pixels=["10", 0], vae=["4", 2], mask=["10", 1], grow_mask_by=2)
    (painted,) = draw(url, socket, http, graph({"latent_image": ["5", 0]}, n5=encode, **load))
    assert painted.convert("RGB").crop((64, 0, 96, 32)).getcolors() == [(1024, (255, 0, 0))]
    assert painted.convert("RGB").crop((0, 0, 8, 32)).getcolors() != [(256, (255, 0, 0))]
    load = {"n10": node("LoadImage", image=kept.json()["name"] + " [input]")}
    encode = node("VAEEncode", pixels=["10", 0], vae=["4", 2])
    (drawn,) = draw(url, socket, http, graph({"denoise": 0.5}, n5=encode, **load))
    record = read_record(drawn).request
    assert (record.kind, record.steps, record.to_record()["strength"]) == ("image_to_image", 4, 0.5)
    mask = {"image": ("mask.png", buffer.getvalue())}
    reference = {"original_ref": json.dumps({"filename": "mine.png", "subfolder": "", "type": "input"})}
    masked = http.post("/upload/mask", files=mask, data=reference).json()
    shown = Image.open(io.BytesIO(http.get("/view", params={"filename": masked["name"], "type": "input"}).content))
    assert shown.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize(
    ("at", "kind", "details", "changes"),
    [
        ("3", "value_not_in_list", "sampler_name: 'ipndm'", {"3": {"sampler_name": "ipndm"}}),
        ("3", "value_smaller_than_min", "steps", {"3": {"steps": 0}}),
        ("3", "invalid_input_type", "cfg", {"3": {"cfg": "much"}}),
        ("3", "bad_linked_input", "positive", {"3": {"positive": ["4", 2]}}),
        ("3", "required_input_missing", "model", {"3": {"model": None}}),
        ("4", "value_not_in_list", "ckpt_name", {"4": {"ckpt_name": "sd_xl.safetensors"}}),
        ("3", "custom_validation_failed", "<lora:ink:1> in the prompt", {"6": {"text": "a bear <lora:ink:1>"}}),
        ("3", "custom_validation_failed", "this server allows", {"5": {"width": 4096}}),
    ],
)
def test_what_is_wrong_is_refused_at_its_node(
    http: httpx.Client, at: str, kind: str, details: str, changes: dict[str, Json]
) -> None:
    nodes = graph()
    for name, inputs in changes.items():
        nodes[name]["inputs"] |= inputs
        nodes[name]["inputs"] = {key: value for key, value in nodes[name]["inputs"].items() if value is not None}
    answer = http.post("/prompt", json={"prompt": nodes})
    assert answer.status_code == 400
    (error,) = answer.json()["node_errors"][at]["errors"]
    assert error["type"] == kind
    assert details in error["details"]
    assert details in answer.json()["error"]["details"]


def test_other_nodes_and_other_graphs_are_refused(http: httpx.Client) -> None:
    face = node("FaceDetailer", image=["8", 0])
    refused = http.post("/prompt", json={"prompt": graph(n20=face)}).json()
    assert refused["node_errors"]["20"]["class_type"] == "FaceDetailer"
    assert refused["node_errors"]["20"]["errors"][0]["type"] == "missing_node_type"
    two = http.post("/prompt", json={"prompt": graph(n10=node("PreviewImage", images=["11", 0]))}).json()
    assert two["node_errors"]["10"]["errors"][0]["type"] == "bad_linked_input"
    nothing = graph()
    del nothing["9"]
    assert http.post("/prompt", json={"prompt": nothing}).json()["error"]["type"] == "prompt_no_outputs"
    deep = json.dumps({"prompt": graph({"seed": ["SEED"]})}).replace('["SEED"]', "[" * 900 + "]" * 900).encode()
    bare = b'{"prompt": {"1": {"class_type": "KSampler"}}}'
    for body in (b"", b"[]", b'{"prompt": {"1": 2}}', bare, deep, b"[" * 10_000):
        assert http.post("/prompt", content=body).status_code == 400
    chain = {str(index): node("ConditioningZeroOut", conditioning=[str(index + 1), 0]) for index in range(100, 600)}
    chained = graph({"positive": ["100", 0]}) | chain | {"600": graph()["6"]}
    for nodes in (chained, graph({"positive": ["100", 0]}) | chain | {"600": chain["100"]}):
        refused = http.post("/prompt", json={"prompt": nodes})
        assert refused.status_code == 400
        assert "\n" not in refused.json()["error"]["details"]
    assert http.post("/prompt", json={"prompt": graph(), "prompt_id": "../../evil"}).status_code == 400
    undrawn = http.post("/prompt", json={"prompt": graph(n8=node("VAEDecode", samples=["5", 0], vae=["4", 2]))}).json()
    assert "holds no sampler" in undrawn["error"]["details"]
    assert "ReverieError" not in undrawn["error"]["details"]
    loose = graph(n30=node("LoraLoader", lora_name="none"))  # leads to no picture, so it is not looked at
    assert http.post("/prompt", json={"prompt": loose}).status_code == 200


def test_prompts_are_listed_interrupted_and_taken_back(http: httpx.Client, url: str, socket: ClientConnection) -> None:
    while http.get("/prompt").json()["exec_info"]["queue_remaining"]:  # what a test before left
        time.sleep(0.05)
    long, short = (queue_prompt(url, graph({"steps": steps}))["prompt_id"] for steps in (1000, 3))
    assert http.get("/prompt").json()["exec_info"]["queue_remaining"] == 2
    assert http.post("/queue", json={"delete": [short]}).status_code == 200
    while (queue := http.get("/api/queue").json())["queue_running"] == []:
        pass
    assert queue["queue_pending"] == []
    ((_, prompt, nodes, extra, outputs),) = queue["queue_running"]
    assert (prompt, nodes, extra, outputs) == (long, graph({"steps": 1000}), {"client_id": "script"}, ["9"])
    assert http.post("/interrupt").status_code == 200
    told = [one for one in messages(socket, long) if isinstance(one, dict)]
    assert told[-2]["type"] == "execution_interrupted"
    past = http.get("/history").json()
    assert past[long]["status"]["status_str"] == past[short]["status"]["status_str"] == "error"
    assert past[long]["outputs"] == {}
    assert http.post("/prompt", json={"prompt": graph(), "prompt_id": long}).status_code == 400
    assert list(past)[-2:] == [long, short]


def test_what_is_known_is_what_the_reader_knows(http: httpx.Client) -> None:
    info = http.get("/object_info").json()
    required = info["KSampler"]["input"]["required"]  # SillyTavern's lists
    assert all(find_sampler(name) for name in required["sampler_name"][0])
    assert all(find_schedule(name) for name in required["scheduler"][0])
    assert "tiny" in info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert "reverie-music" not in info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert info["UNETLoader"]["input"]["required"]["unet_name"][0] == []
    assert info["VAELoader"]["input"]["required"]["vae_name"][0] == []
    assert set(info) == set(json.loads(NODES))
    assert list(http.get("/api/object_info/SaveImage").json()) == ["SaveImage"]
    assert http.get("/models/loras").json() == ["broken.safetensors"]
    assert http.get("/models/other").status_code == 404
    assert {"checkpoints", "loras"} <= set(http.get("/models").json())
    assert "models" in http.get("/api/models").json()  # ours
    assert (http.get("/embeddings").json(), http.get("/extensions").json()) == (["inkwash"], [])
    assert http.get("/system_stats").json()["devices"][0]["vram_total"] > 0
    assert http.post("/free", json={"unload_models": True}).status_code == 200
