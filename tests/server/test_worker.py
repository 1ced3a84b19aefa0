"""Workers hold as many models as they may, leave nothing of a job in the next, and may die without one being lost."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import reverie
from reverie.pipeline import Pipeline
from reverie.runtime import transform
from reverie.server.app import create_app
from reverie.server.settings import Limits, Settings
from reverie.server.submissions import Submission
from reverie.server.worker import LoadedModels, Said, Task, carry_out

BEAR = {"prompt": "a bear", "seed": 7, "steps": 2}


def task(settings: Settings, **body: Any) -> Task:
    given = Submission.of({"kind": "text_to_image", "request": BEAR, **body})
    return Task("job", given.fill(settings))


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    own = replace(settings, home=tmp_path)
    for folder in (own.outputs, own.uploads):
        folder.mkdir()
    return own


def test_the_model_used_longest_ago_makes_room(settings: Settings, model_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(model_folder / "tiny", tmp_path / name)
    size = sum(file.stat().st_size for file in (tmp_path / "a").rglob("*"))
    models = LoadedModels(replace(settings, models=(tmp_path,), memory=2 * size))
    first = models.load("a")
    models.load("b")
    assert models.load("a") is first
    models.load("c")
    assert models.names == ["a", "c"]
    models.unload("a")
    assert models.names == ["c"]
    LoadedModels(replace(settings, models=(tmp_path,), memory=1)).load("a")  # one is always held


def test_packed_weights_take_memory_too(
    settings: Settings, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform, "WIDE", 1)
    for name in ("a", "b", "c"):
        shutil.copytree(model_folder / "tiny", tmp_path / name)
    size = sum(file.stat().st_size for file in (tmp_path / "a").rglob("*"))
    models = LoadedModels(replace(settings, models=(tmp_path,), memory=5 * size // 2))
    for name in ("a", "b", "c"):
        models.load(name).text_to_image("a bear", steps=1)
    assert models.names == ["b", "c"]


def test_a_lora_leaves_nothing_in_the_next_job(own: Settings, tiny: Pipeline, ink: Path) -> None:
    own = replace(own, loras=(ink.parent,))
    drawn = []
    for loras in ([], ["ink:5"], []):
        said: list[Said] = []
        job = task(own, request={**BEAR, "loras": loras})
        carry_out(job, own, lambda _: tiny, lambda _: False, said.append)
        assert said[-1].what == "done", said
        drawn.append((own.outputs / "job.png").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_job_that_is_cancelled_says_so_last(own: Settings, tiny: Pipeline) -> None:
    said: list[Said] = []
    carry_out(task(own), own, lambda _: tiny, lambda _: bool(said), said.append)
    assert [one.what for one in said][-1] == "cancelled"
    assert not (own.outputs / "job.png").exists()


def test_a_fault_of_ours_tells_no_details(own: Settings) -> None:
    def fail(name: str | None) -> Pipeline:
        raise RuntimeError("inner details")

    said: list[Said] = []
    carry_out(task(own), own, fail, lambda _: False, said.append)
    message, field, status = said[-1].value
    assert (field, status, "inner" in message) == (None, 500, False)


def test_a_worker_that_dies_is_replaced_and_its_job_done(client: TestClient) -> None:
    body = {"kind": "text_to_image", "request": {**BEAR, "steps": 200}}
    job = client.post("/api/jobs", json=body).json()
    (worker,) = client.app.state.dispatcher.workers  # type: ignore[attr-defined]
    while client.get(f"/api/jobs/{job['id']}").json()["progress"] is None:
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)
    assert client.get(f"/api/jobs/{job['id']}/events").text
    assert client.get(f"/api/jobs/{job['id']}").json()["state"] == "done"


def test_a_full_queue_says_when_to_come_again_and_long_jobs_are_stopped(settings: Settings, tmp_path: Path) -> None:
    limits = Limits(queue=2, share=0.5, steps=1000, seconds=0.5)
    with TestClient(create_app(replace(settings, home=tmp_path, limits=limits))) as client:
        body = {"kind": "text_to_image", "request": {**BEAR, "steps": 1000, "count": 64}}
        jobs = [client.post("/api/jobs", json=body) for _ in range(3)]
        assert [job.status_code for job in jobs] == [202, 202, 429]
        assert int(jobs[2].headers["retry-after"]) >= 1
        assert client.post("/api/jobs", json=body, headers={"x-reverie-client": "other"}).status_code == 202
        assert client.get(f"/api/jobs/{jobs[0].json()['id']}/events").text
        job = client.get(f"/api/jobs/{jobs[0].json()['id']}").json()
        assert (job["state"], "stopped after 0.5 s" in job["error"]) == ("failed", True)


@pytest.mark.slow
def test_two_workers_draw_side_by_side_what_one_draws(settings: Settings, tmp_path: Path, model_folder: Path) -> None:
    with TestClient(create_app(replace(settings, home=tmp_path, workers=2))) as client:
        bodies = [{"kind": "text_to_image", "request": {**BEAR, "seed": seed, "steps": 50}} for seed in range(12)]
        jobs = [client.post("/api/jobs", json=body).json()["id"] for body in bodies]
        running = client.get("/api/jobs", params={"state": "running"}).json()["jobs"]
        assert len(running) == 2
        for id, body in zip(jobs, bodies, strict=True):
            assert client.get(f"/api/jobs/{id}/events").text
            (file,) = client.get(f"/api/jobs/{id}").json()["files"]
            picture = Image.open(io.BytesIO(client.get(file["url"]).content))
            (alone,) = reverie.load(model_folder / "tiny").text_to_image(**body["request"])
            assert picture.tobytes() == alone.tobytes()
