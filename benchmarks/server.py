"""Does a server hold under load: nothing lost, nothing mixed up, memory flat, with clients that vanish and kill -9?

`python benchmarks/server.py` starts `reverie serve` on loopback, lets many clients ask for small pictures by several
protocols, kills it in the middle and starts it again, and compares every picture with the one that the library draws.
`--overhead` measures what a request costs beside the drawing, `--throughput` pictures a second of two workers beside
`reverie image --count`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

import reverie
from reverie.requests.pictures import TextToImage

PROMPTS = ("a panda", "a rocket", "an apple", "a bear", "a star")
SEEDS = 8  # of each prompt: so many different pictures are asked for, again and again
PORT = 17860
SIDE = 64  # pixels: the drawing is to take little beside the serving


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
    acknowledged: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Load:
    """So many clients ask for so many pictures of a few steps."""

    clients: int
    requests: int
    steps: int
    drawn: dict[tuple[bool, str, int], bytes]
    tally: Tally = field(default_factory=Tally)
    done: int = 0

    def check(self, protocol: str, asked: tuple[str, int], data: bytes) -> None:
        """Compare a picture with the one drawn alone."""
        with Image.open(io.BytesIO(data)) as picture:
            if picture.tobytes() != self.drawn[protocol == "comfy", *asked]:
                self.tally.wrong.append(f"{protocol} {asked}")

    async def client(self, number: int) -> None:
        """Ask as one client does; every third vanishes in the middle of each of its later requests."""
        chance = random.Random(number)
        headers = {"X-Reverie-Client": f"client {number}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=600) as http:
            for turn in range(self.requests // self.clients):
                asked = chance.choice(PROMPTS), chance.randrange(SEEDS)
                protocol = chance.choice(list(PROTOCOLS))
                vanishes = number % 3 == 0 and turn >= self.requests // self.clients // 2
                await self.ask(http, protocol, asked, chance.uniform(0.01, 0.3) if vanishes else None)
                self.done += 1

    async def ask(self, http: httpx.AsyncClient, protocol: str, asked: tuple[str, int], patience: float | None) -> None:
        """Ask until it is answered, or go away after `patience` seconds."""
        while True:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(patience):
                    data = await PROTOCOLS[protocol](self, http, asked)
            except TimeoutError:
                self.tally.counts["went away"] += 1
                return
            except httpx.TransportError:
                self.tally.counts["asked again after the kill"] += 1
                await asyncio.sleep(0.5)
                continue
            except httpx.HTTPStatusError as error:
                self.tally.counts[f"answered {error.response.status_code}"] += 1
                await asyncio.sleep(float(error.response.headers.get("Retry-After", 1)))
                continue
            self.tally.seconds.setdefault(protocol, []).append(time.perf_counter() - start)
            self.check(protocol, asked, data)
            return


def fields(load: Load, asked: tuple[str, int]) -> dict[str, object]:
    """Return what all protocols call the same."""
    return {"prompt": asked[0], "seed": asked[1], "steps": load.steps}


async def by_jobs(load: Load, http: httpx.AsyncClient, asked: tuple[str, int]) -> bytes:
    """Submit a job, follow its events, and fetch its file; a job that was acknowledged is followed after a kill."""
    request = fields(load, asked) | {"width": SIDE, "height": SIDE}
    body = {"kind": "text_to_image", "request": request, "options": {"previews": 0}}
    answer = (await http.post("/api/jobs", json=body)).raise_for_status().json()
    load.tally.acknowledged[answer["id"]] = "jobs", *asked
    while True:
        try:
            async with http.stream("GET", f"/api/jobs/{answer['id']}/events") as events:
                lines = [line async for line in events.aiter_lines() if line.startswith("data: ")]
            job = json.loads(lines[-1].removeprefix("data: ")).get("job", {})
            if job.get("state") == "done":
                return (await http.get(job["files"][0]["url"])).raise_for_status().content
        except (httpx.TransportError, IndexError):
            await asyncio.sleep(0.5)


async def by_openai(load: Load, http: httpx.AsyncClient, asked: tuple[str, int]) -> bytes:
    """Ask OpenAI's route."""
    answer = await http.post("/v1/images/generations", json=fields(load, asked) | {"size": f"{SIDE}x{SIDE}"})
    return base64.b64decode(answer.raise_for_status().json()["data"][0]["b64_json"])


async def by_a1111(load: Load, http: httpx.AsyncClient, asked: tuple[str, int]) -> bytes:
    """Ask AUTOMATIC1111's route, for what our defaults are."""
    more = {
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": own_guidance(),
        "width": SIDE,
        "height": SIDE,
    }
    answer = await http.post("/sdapi/v1/txt2img", json={**fields(load, asked), **more})
    return base64.b64decode(answer.raise_for_status().json()["images"][0])


async def by_huggingface(load: Load, http: httpx.AsyncClient, asked: tuple[str, int]) -> bytes:
    """Ask as huggingface_hub.InferenceClient does."""
    parameters = {"num_inference_steps": load.steps, "seed": asked[1], "width": SIDE, "height": SIDE}
    return (await http.post("/", json={"inputs": asked[0], "parameters": parameters})).raise_for_status().content


async def by_comfy(load: Load, http: httpx.AsyncClient, asked: tuple[str, int]) -> bytes:
    """Queue a graph as ComfyUI's scripts do, poll its history, and view the picture."""
    answer = (await http.post("/prompt", json={"prompt": graph(load, asked)})).raise_for_status().json()
    load.tally.acknowledged[answer["prompt_id"]] = "comfy", *asked
    while True:
        with suppress(httpx.TransportError):
            history = (await http.get(f"/history/{answer['prompt_id']}")).json()
            if (prompt := history.get(answer["prompt_id"])) and prompt["status"]["completed"]:
                ((image,),) = (output["images"] for output in prompt["outputs"].values())
                return (await http.get("/view", params=image)).raise_for_status().content
        await asyncio.sleep(0.5)


def graph(load: Load, asked: tuple[str, int]) -> dict[str, object]:
    """Return ComfyUI's usual graph for what is asked."""
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    sampling = {"sampler_name": "dpmpp_2m", "scheduler": "karras", "cfg": own_guidance(), "denoise": 1.0}
    nodes: dict[str, tuple[str, dict[str, object]]] = {
        "3": ("KSampler", {"seed": asked[1], "steps": load.steps, **sampling, **links}),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": "reverie-emoji.safetensors"}),
        "5": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": asked[0], "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "", "clip": ["4", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "load"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def own_guidance() -> float:
    """Return the bundled model's own guidance."""
    return float(
        json.loads((Path(reverie.__file__).parent / "assets/bundled/recommended.json").read_text())["guidance"]
    )


Ask = Callable[[Load, httpx.AsyncClient, tuple[str, int]], Awaitable[bytes]]
PROTOCOLS: dict[str, Ask] = {
    "jobs": by_jobs,
    "openai": by_openai,
    "a1111": by_a1111,
    "huggingface": by_huggingface,
    "comfy": by_comfy,
}


def draw_alone(steps: int) -> dict[tuple[bool, str, int], bytes]:
    """Draw all the pictures in this process, as we do and as ComfyUI does."""
    model = reverie.load()
    drawn = dict[tuple[bool, str, int], bytes]()
    for comfy, text, seed in itertools.product((False, True), PROMPTS, range(SEEDS)):
        request = TextToImage(prompt=text, seed=seed, width=SIDE, height=SIDE, steps=steps)
        if comfy:
            request = request.replace(rng="cpu_then_gpu", zero_negative=False)
        drawn[comfy, text, seed] = model.draw(request)[0].tobytes()
    return drawn


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
            for id, (protocol, text, seed) in load.tally.acknowledged.items():
                await check_job(load, http, id, protocol, (text, seed))
        late = memory(server)
    report(load, time.perf_counter() - start, before, early, late)


async def check_job(load: Load, http: httpx.AsyncClient, id: str, protocol: str, asked: tuple[str, int]) -> None:
    """Look whether a job that was acknowledged is done, with the right picture, whether or not its client waited."""
    while (job := (await http.get(f"/api/jobs/{id}")).json())["state"] in ("queued", "running"):
        await asyncio.sleep(0.2)
    if job["state"] != "done":
        load.tally.wrong.append(f"job {id} is {job['state']}: {job['error']}")
        return
    load.check(protocol, asked, (await http.get(job["files"][0]["url"])).content)


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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.overhead:
            overhead(Path(scratch))
        elif given.throughput:
            throughput(Path(scratch))
        else:
            for name in set(PROTOCOLS) - set(given.protocols.split(",")):
                del PROTOCOLS[name]
            load = Load(given.clients, given.requests, given.steps, draw_alone(given.steps))
            asyncio.run(run_load(load, Path(scratch), given.workers))


if __name__ == "__main__":
    main()
