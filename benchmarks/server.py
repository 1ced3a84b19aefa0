"""Does a server hold under load: nothing lost, nothing mixed up, memory flat, with clients that vanish and kill -9?

`python benchmarks/server.py` starts `reverie serve` on loopback, lets many clients ask for small pictures by several
protocols, kills it in the middle and starts it again, and compares every picture with the one that the library draws.
`--overhead` measures what a request costs beside the drawing, `--switches 50` the memory over changes of models,
`--throughput` pictures a second of two workers beside `reverie image --count`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

import reverie
from protocols import END, PROTOCOLS, SIDE, Wish
from reverie.jobs.music import MusicJob
from reverie.requests.music import Music
from reverie.requests.pictures import TextToImage
from reverie.requests.references import BUNDLED, BUNDLED_NAME

PROMPTS = ("a panda", "a rocket", "an apple", "a bear", "a star")
SEEDS = 8  # of each prompt: so many different pictures are asked for, again and again
SHARES = {"riffusion": 0.2}  # of the requests, of a protocol whose answers take long; 1 if not given
CLIPS = 2  # seeds of each prompt of clips, which take seconds
PORT = 17860
Drawn = tuple[str, str, int]
"""How something is drawn, as we, as ComfyUI or as Riffusion does, its prompt and its seed."""


@contextmanager
def serve(home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server until the block ends."""
    command = [sys.executable, "-m", "reverie", "serve", "--home", str(home), "--port", str(PORT), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield server
        finally:
            server.kill()


def memory(server: subprocess.Popen[str]) -> dict[str, float]:
    """Return the resident MiB of the web process and of the workers together."""
    parents = {pid: int(_status(pid, "PPid") or 0) for pid in map(int, filter(str.isdigit, _processes()))}
    workers = [pid for pid, parent in parents.items() if parent == server.pid]
    size = {pid: int((_status(pid, "VmRSS") or "0").split()[0]) / 1024 for pid in (server.pid, *workers)}
    return {"web": size[server.pid], "workers": sum(size[pid] for pid in workers)}


def _processes() -> list[str]:
    return [path.name for path in Path("/proc").iterdir()]


def _status(pid: int, name: str) -> str | None:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return None


@dataclass
class Tally:
    """What happened: seconds of each request by protocol, pictures that were wrong, jobs that were acknowledged."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    acknowledged: dict[str, Drawn] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Load:
    """So many clients ask for so many pictures and clips of a few steps."""

    clients: int
    requests: int
    steps: int
    drawn: dict[Drawn, bytes]
    tally: Tally = field(default_factory=Tally)
    done: int = 0

    def check(self, kind: Drawn, data: bytes) -> None:
        """Compare what was answered with what was made alone: pixels, or the file of a clip."""
        if kind[0] != "riffusion":
            with Image.open(io.BytesIO(data)) as picture:
                data = picture.tobytes()
        if data != self.drawn[kind]:
            self.tally.wrong.append(f"{kind}")

    async def client(self, number: int) -> None:
        """Ask as one client does; every third vanishes in the middle of each of its later requests."""
        chance = random.Random(number)
        headers = {"X-Reverie-Client": f"client {number}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=600) as http:
            for turn in range(self.requests // self.clients):
                (protocol,) = chance.choices(list(PROTOCOLS), [SHARES.get(name, 1) for name in PROTOCOLS])
                way = protocol if protocol in ("comfy", "riffusion") else "picture"
                kind = way, chance.choice(PROMPTS), chance.randrange(CLIPS if way == "riffusion" else SEEDS)
                vanishes = number % 3 == 0 and turn >= self.requests // self.clients // 2
                await self.ask(http, protocol, kind, chance.uniform(0.01, 0.3) if vanishes else None)
                self.done += 1

    async def ask(self, http: httpx.AsyncClient, protocol: str, kind: Drawn, patience: float | None) -> None:
        """Ask until it is answered, or go away after `patience` seconds."""

        def acknowledge(id: str) -> None:
            self.tally.acknowledged[id] = kind

        while True:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(patience):
                    data = await PROTOCOLS[protocol](http, Wish(*kind[1:], self.steps, acknowledge))
            except TimeoutError:
                self.tally.counts["went away"] += 1
                return
            except httpx.TransportError:
                self.tally.counts["asked again after the kill"] += 1
                await asyncio.sleep(0.5)
                continue
            except httpx.HTTPStatusError as error:
                self.tally.counts[f"{protocol} answered {error.response.status_code}"] += 1
                await asyncio.sleep(float(error.response.headers.get("Retry-After", 1)))
                continue
            self.tally.seconds.setdefault(protocol, []).append(time.perf_counter() - start)
            self.check(kind, data)
            return


def draw_alone(steps: int, scratch: Path) -> dict[Drawn, bytes]:
    """Make all that is asked for in this process: pictures as we and as ComfyUI draw them, clips as Riffusion does."""
    model, composer = reverie.load(), reverie.load("reverie-music")
    made = dict[Drawn, bytes]()
    for prompt, seed in itertools.product(PROMPTS, range(SEEDS)):
        request = TextToImage(prompt=prompt, seed=seed, width=SIDE, height=SIDE, steps=steps)
        made["picture", prompt, seed] = model.draw(request)[0].tobytes()
        made["comfy", prompt, seed] = model.draw(request.replace(rng="cpu_then_gpu", zero_negative=False))[0].tobytes()
    for prompt, seed in itertools.product(PROMPTS, range(CLIPS)):
        start, end = ({"seed": one, "guidance": 7.0, "strength": 0.75, "negative": ""} for one in (seed, seed + 1))
        music = Music.of({**start, "prompt": prompt, "to": [end | {"prompt": END}], "alpha": 0.5, "steps": steps})
        for _ in MusicJob(request=music, outputs=(scratch / "alone.mp3",)).run(lambda name: composer):
            pass
        made["riffusion", prompt, seed] = (scratch / "alone.mp3").read_bytes()
    return made


async def run_load(load: Load, home: Path, workers: int) -> None:
    """Let the clients ask; kill the server when half is answered, and start it again."""
    options = ("--workers", str(workers))
    start = time.perf_counter()
    with serve(home, *options) as server:
        clients = [asyncio.create_task(load.client(number)) for number in range(load.clients)]
        while load.done < load.requests // 2:
            await asyncio.sleep(0.1)
        before = memory(server)
        server.kill()
    with serve(home, *options) as server:
        await asyncio.sleep(5)
        early = memory(server)
        await asyncio.gather(*clients)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=600) as http:
            for id, kind in load.tally.acknowledged.items():
                await check_job(load, http, id, kind)
        late = memory(server)
    report(load, time.perf_counter() - start, before, early, late)


async def check_job(load: Load, http: httpx.AsyncClient, id: str, kind: Drawn) -> None:
    """Look whether a job that was acknowledged is done, with the right picture, whether or not its client waited."""
    while (job := (await http.get(f"/api/jobs/{id}")).json())["state"] in ("queued", "running"):
        await asyncio.sleep(0.2)
    if job["state"] != "done":
        load.tally.wrong.append(f"job {id} is {job['state']}: {job['error']}")
        return
    load.check(kind, (await http.get(job["files"][0]["url"])).content)


def report(load: Load, took: float, *memories: dict[str, float]) -> None:
    """Print what was measured."""
    answered = sum(map(len, load.tally.seconds.values()))
    print(
        f"{load.clients} clients, {load.requests} requests of {load.steps} steps in {took:.0f} s, {answered} answered"
    )
    for protocol, taken in load.tally.seconds.items():
        ranked = statistics.quantiles(taken, n=20) if len(taken) > 1 else taken * 20
        print(f"{protocol}: {len(taken)}, p50 {statistics.median(taken):.2f} s, p95 {ranked[18]:.2f} s")
    for text, count in load.tally.counts.items():
        print(f"{text}: {count}")
    for name, now in zip(("before the kill", "5 s after the restart", "at the end"), memories, strict=True):
        print(f"memory {name}: web {now['web']:.0f} MiB, workers {now['workers']:.0f} MiB")
    print(f"jobs acknowledged: {len(load.tally.acknowledged)}; lost or mixed up: {len(load.tally.wrong)}")
    for line in load.tally.wrong[:10]:
        print(" ", line)


def overhead(home: Path, rounds: int = 60) -> None:
    """Print the processor time of a request, in the web process and in the worker, and of the drawing in process."""
    model, body = reverie.load(), {"prompt": "a panda", "steps": 1, "size": f"{SIDE}x{SIDE}", "response_format": "url"}

    def draw(seed: int) -> None:
        reverie.save(model.text_to_image("a panda", seed=seed, steps=1, width=SIDE, height=SIDE)[0], home / "alone.png")

    with serve(home) as server, httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as http:
        for seed in range(3):  # the first ones load
            http.post("/v1/images/generations", json=body).raise_for_status()
            draw(seed)
        before, alone = processor_time(server), time.process_time()
        for seed in range(rounds):
            draw(seed)
        alone = time.process_time() - alone
        start = time.perf_counter()
        for seed in range(rounds):
            http.post("/v1/images/generations", json=body | {"seed": seed}).raise_for_status()
        took, after = time.perf_counter() - start, processor_time(server)
    web, worker = (1000 * (later - sooner) / rounds for sooner, later in zip(before, after, strict=True))
    drawing = 1000 * alone / rounds
    print(f"processor time of a request: web {web:.1f} ms, worker {worker:.1f} ms; in process {drawing:.1f} ms")
    print(f"wall-clock time of a request: {1000 * took / rounds:.1f} ms")


def processor_time(server: subprocess.Popen[str]) -> tuple[float, float]:
    """Return the seconds that the web process and the workers have computed."""
    ticks = {"web": 0.0, "workers": 0.0}
    for pid in map(int, filter(str.isdigit, _processes())):
        with suppress(OSError):
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            if server.pid in (pid, int(values[1])):
                ticks["web" if pid == server.pid else "workers"] += int(values[11]) + int(values[12])
    return ticks["web"] / os.sysconf("SC_CLK_TCK"), ticks["workers"] / os.sysconf("SC_CLK_TCK")


def switches(home: Path, count: int) -> None:
    """Print the memory of a worker that has room for one model and draws with two by turns."""
    folder = home / "models"
    for name in ("first", "second"):
        shutil.copytree(BUNDLED[BUNDLED_NAME], folder / name)
    body = {"kind": "text_to_image", "request": {"prompt": "a panda", "steps": 1, "width": SIDE, "height": SIDE}}
    sizes = list[float]()
    with (
        serve(home, "--models", str(folder), "--model", "first", "--memory", "0.04") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=600) as http,
    ):
        for turn in range(count):
            name = ("second", "first")[turn % 2]
            job = http.post("/api/jobs", json=body | {"model": name}).raise_for_status().json()
            http.get(f"/api/jobs/{job['id']}/events")
            loaded = [one["name"] for one in http.get("/api/models").json()["models"] if one["loaded"]]
            assert loaded == [name], loaded
            sizes.append(memory(server)["workers"])
    print(f"{count} switches: " + ", ".join(f"{n}: {sizes[n - 1]:.0f} MiB" for n in (1, 2, 3, 10, 25, count)))
    print(f"the last is {sizes[-1] / sizes[1] - 1:+.1%} of that after the second, the most {max(sizes):.0f} MiB")


def throughput(home: Path, count: int = 32, steps: int = 20) -> None:
    """Print pictures a second of two workers beside `reverie image --count`, which uses all cores for one."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "reverie", "image", "a panda", "-o", str(home / "alone.png"), "--json"]
    printed = subprocess.run(
        [*command, "--seed", "0", "--count", str(count)], capture_output=True, text=True, check=True
    )
    alone = count / json.loads(printed.stdout)["timings"]["draw"]
    with serve(home, "--workers", "2"), httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=600) as http:
        for _ in range(2):  # the first round loads
            bodies = [
                {"kind": "text_to_image", "request": {"prompt": "a panda", "seed": seed}} for seed in range(count)
            ]
            start = time.perf_counter()
            jobs = [http.post("/api/jobs", json={**body, "options": {"previews": 0}}).json()["id"] for body in bodies]
            while any(http.get(f"/api/jobs/{id}").json()["state"] != "done" for id in reversed(jobs)):
                time.sleep(0.05)
            served = count / (time.perf_counter() - start)
    print(f"two workers {served:.2f} pictures/s, reverie image {alone:.2f} pictures/s: {served / alone:.2f} times")


def main() -> None:
    """Run what the options say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--switches", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.overhead:
            overhead(Path(scratch))
        elif given.throughput:
            throughput(Path(scratch))
        elif given.switches:
            switches(Path(scratch), given.switches)
        else:
            for name in set(PROTOCOLS) - set(given.protocols.split(",")):
                del PROTOCOLS[name]
            load = Load(given.clients, given.requests, given.steps, draw_alone(given.steps, Path(scratch)))
            asyncio.run(run_load(load, Path(scratch), given.workers))


if __name__ == "__main__":
    main()
