"""Workers on a Ray cluster of two nodes draw what one process draws, and may die without a job being lost."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import reverie
from reverie.errors import ReverieError
from reverie.server.app import create_app
from reverie.server.cluster import connect
from reverie.server.settings import Settings

BEAR = {"prompt": "a bear", "steps": 400}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start two nodes of a core each, and give their cluster's address."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Ray gives its workers the least priority, under which they get nowhere on a machine that is busy otherwise.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_job_outlives_the_actor_that_does_it(
    settings: Settings, model_folder: Path, tmp_path: Path, address: str
) -> None:
    import ray

    hire = connect(address)
    with TestClient(create_app(replace(settings, home=tmp_path, workers=2), hire)) as client:
        bodies = [{"kind": "text_to_image", "request": {**BEAR, "seed": seed}} for seed in range(4)]
        jobs = [client.post("/api/jobs", json=body).json()["id"] for body in bodies]
        served = client.app.state.dispatcher  # type: ignore[attr-defined]
        while client.get(f"/api/jobs/{jobs[0]}").json()["progress"] is None:
            time.sleep(0.1)
        (busy,) = [worker for worker in served.workers if worker.task == jobs[0]]
        os.kill(busy.pid, signal.SIGKILL)
        for id, body in zip(jobs, bodies, strict=True):
            assert client.get(f"/api/jobs/{id}/events").text
            (file,) = client.get(f"/api/jobs/{id}").json()["files"]
            picture = Image.open(io.BytesIO(client.get(file["url"]).content))
            (alone,) = reverie.load(model_folder / "tiny").text_to_image(**body["request"])
            assert picture.tobytes() == alone.tobytes()
        assert [served.store.get(id).attempts for id in jobs] == [2, 1, 1, 1]
        assert busy not in served.workers
        while ray.available_resources().get("CPU"):  # until actors have the core of either node
            time.sleep(0.1)


def test_a_cluster_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ReverieError, match=r"Ray is not installed; pip install 'reverie\[dist\]'"):
        connect("local")
