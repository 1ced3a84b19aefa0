"""A server over a tiny model of random weights, and one with a key, that the tests of the server share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.models.upscalers import CompactConfig, SRVGGNet
from reverie.pipeline import Pipeline
from reverie.server.app import Server, create_app, listen, uvicorn_config
from reverie.server.settings import Limits, Settings

Json = dict[str, Any]


@pytest.fixture(scope="session")
def model_folder(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def controlnets(tiny: Pipeline, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with "steer", a ControlNet of random weights."""
    network = ControlNet(ControlNetConfig(tiny.unet.config, hint_widths=(4, 4, 4, 4)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("controlnets")
    (folder / "steer").mkdir()
    save_file(network.state_dict(), folder / "steer" / "diffusion_pytorch_model.safetensors")
    config = json.loads((model_folder / "tiny" / "unet" / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("up_block_types", "out_channels")}
    told = {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [4, 4, 4, 4]}
    (folder / "steer" / "config.json").write_text(json.dumps(config | told))
    return folder


@pytest.fixture(scope="session")
def embeddings(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with "inkwash", a textual inversion of two random vectors."""
    folder = tmp_path_factory.mktemp("embeddings")
    vectors = torch.randn(2, tiny.text_encoders[0].config.hidden_size)
    save_file({"emb_params": vectors}, folder / "inkwash.safetensors")
    return folder


@pytest.fixture(scope="session")
def upscalers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with "ink-4x", which makes pictures four times as large by random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("upscalers")
    torch.save({"params": SRVGGNet(CompactConfig(features=4, layers=1)).state_dict()}, folder / "ink-4x.pth")
    return folder


@pytest.fixture(scope="session")
def settings(
    model_folder: Path,
    controlnets: Path,
    embeddings: Path,
    upscalers: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    home, loras = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("loras")
    (loras / "broken.safetensors").write_bytes(b"nothing")
    styles = tmp_path_factory.mktemp("styles") / "styles.csv"
    styles.write_text("name,prompt,negative_prompt\nink,{prompt} in ink,oil\n")
    wildcards = tmp_path_factory.mktemp("wildcards")
    (wildcards / "animals.txt").write_text("bear\n")
    limits = Limits(pixels=256 * 256, steps=1000, count=8, body=4 << 20, queue=40)
    return Settings(
        home=home,
        models=(model_folder,),
        loras=(loras,),
        embeddings=(embeddings,),
        controlnets=(controlnets,),
        upscalers=(upscalers,),
        styles=styles,
        wildcards=wildcards,
        model="tiny",
        limits=limits,
        hosts=("testserver",),
    )


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="session")
def finish(client: TestClient) -> Callable[[Json], Json]:
    """Submit a job and return it when it is over."""

    def finish(body: Json) -> Json:
        answer = client.post("/api/jobs", json=body)
        assert answer.status_code == 202, answer.text
        for _ in range(1000):
            job: Json = client.get(f"/api/jobs/{answer.json()['id']}").json()
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            time.sleep(0.02)
        raise AssertionError(f"not over: {job}")

    return finish


@pytest.fixture(scope="session")
def serve() -> Callable[[Settings], AbstractContextManager[str]]:
    """Give what serves on a free port as long as a block lasts, and tells the address."""

    @contextmanager
    def serve(settings: Settings) -> Iterator[str]:
        settings = replace(settings, port=0)
        with listen(settings) as listener:
            ready = threading.Event()
            server = Server(uvicorn_config(settings), ready.set)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            assert ready.wait(60)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join(30)

    return serve


@pytest.fixture(scope="session")
def url(
    serve: Callable[[Settings], AbstractContextManager[str]],
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Give the address of a server on a socket, which needs the key "secret"."""
    with serve(replace(settings, home=tmp_path_factory.mktemp("keyed"), tokens=("secret",))) as address:
        yield address
