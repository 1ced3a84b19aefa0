"""The queue is fair, whoever asks for how much, and what is in it outlives the process."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import strategies as st

from reverie.server.dispatcher import Dispatcher, FairQueue
from reverie.server.protocols.openai import ImagesRequest, _stream
from reverie.server.settings import Settings
from reverie.server.store import JobStore

CLIENTS = st.sampled_from("abc")
BEAR = {"prompt": "a bear", "steps": 150, "count": 2}


@given(st.lists(st.one_of(CLIENTS, st.just(None)), max_size=40))
def test_clients_take_turns_and_keep_their_own_order(script: list[str | None]) -> None:
    """A letter adds a job of that client, None takes one."""
    queue, waiting, last_turn, turn = FairQueue(), dict[str, list[str]](), Counter[str](), 0
    for number, client in enumerate(script):
        if client is not None:
            queue.add(client, f"{client}{number}")
            waiting.setdefault(client, []).append(f"{client}{number}")
        elif len(queue):
            foretold = next(queue.order())
            job = queue.take()
            assert job == foretold
            assert job == waiting[job[0]].pop(0)
            turn += 1
            last_turn[job[0]] = turn
    rest = [queue.take() for _ in range(len(queue))]
    assert sorted(rest) == sorted(job for line in waiting.values() for job in line)
    first = {client: rest.index(line[0]) for client, line in waiting.items() if line}
    assert all(place < len(first) for place in first.values())  # everyone once before anyone twice


@given(st.lists(CLIENTS, min_size=1, max_size=20), st.data())
def test_a_job_is_taken_out_of_the_middle(clients: list[str], data: st.DataObject) -> None:
    queue = FairQueue()
    jobs = [(client, f"{client}{number}") for number, client in enumerate(clients)]
    for client, job in jobs:
        queue.add(client, job)
    gone = data.draw(st.sampled_from(jobs))
    order = list(queue.order())
    assert queue.remove(*gone)
    assert not queue.remove(*gone)
    assert len(queue) == len(jobs) - 1
    assert set(queue.order()) == set(order) - {gone[1]}


@contextmanager
def serving(home: Path, models: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Run the command, and yield it and a client of it."""
    command = [sys.executable, "-m", "reverie", "serve", "--home", str(home), "--models", str(models)]
    with subprocess.Popen([*command, "--model", "tiny", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with httpx.Client(base_url=address, timeout=60) as client:
            try:
                yield server, client
            finally:
                server.kill()


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path, model_folder: Path) -> None:
    home = tmp_path / "home"
    with serving(home, model_folder) as (server, client):
        bodies = [{"kind": "text_to_image", "request": {**BEAR, "seed": seed}} for seed in (0, 10)]
        jobs = [client.post("/api/jobs", json=body).json() for body in bodies]
        while client.get(f"/api/jobs/{jobs[0]['id']}").json()["progress"] is None:
            time.sleep(0.02)
        server.kill()
    with serving(home, model_folder) as (server, client):
        for seed, job in zip((0, 10), jobs, strict=True):
            assert client.get(f"/api/jobs/{job['id']}/events").text
            now = client.get(f"/api/jobs/{job['id']}").json()
            assert (now["state"], now["result"]["seeds"]) == ("done", [seed, seed + 1])
            assert all(client.get(file["url"]).content.startswith(b"\x89PNG") for file in now["files"])
        unfinished = client.post("/api/jobs", json=bodies[0]).json()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
    with closing(sqlite3.connect(home / "jobs.sqlite3")) as store:
        states = dict(store.execute("SELECT id, state FROM jobs"))
    assert states[unfinished["id"]] in ("queued", "running")


class Absent:
    """A worker that is told of jobs and does none."""

    task, models = None, ()

    def __init__(self, *_: object) -> None:
        pass

    def start(self, task: object) -> None:
        self.task = "another"

    def stop(self) -> None:
        pass


def test_a_stream_that_ends_with_the_server_leaves_its_job_to_the_next_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for folder in (settings.outputs, settings.uploads):
        folder.mkdir()

    async def stream() -> tuple[str, str]:
        dispatcher = Dispatcher(settings, JobStore(tmp_path / "jobs"), Absent)
        body = {"kind": "text_to_image", "request": {"prompt": "a bear"}}
        jobs = [await dispatcher.submit(body, "a") for _ in range(2)]
        dispatcher.announce_close()
        (told,) = [event async for event in _stream(dispatcher, jobs[1], ImagesRequest(stream=True), "image")]
        kept = dispatcher.store.get(jobs[1].id)
        assert kept is not None
        await dispatcher.close()
        return told, kept.state

    told, state = asyncio.run(stream())
    assert "the server is closing; the job is kept" in told
    assert state == "queued"
