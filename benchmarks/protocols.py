"""The server's protocols, asked as their programs ask: a small picture of the bundled model, or a clip of music."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import reverie

SIDE = 64  # pixels: the drawing is to take little beside the serving
END = "a star"  # where a clip goes to
Json = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What is asked for. `acknowledge` gets the id of its job, which must not be lost from then on."""

    prompt: str
    seed: int
    steps: int
    acknowledge: Callable[[str], None] = lambda id: None

    @property
    def fields(self) -> Json:
        """Return what most protocols call the same."""
        return {"prompt": self.prompt, "seed": self.seed, "steps": self.steps}


async def by_jobs(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Submit a job, follow its events, and fetch its file; a job that was acknowledged is followed after a kill."""
    request = wish.fields | {"width": SIDE, "height": SIDE}
    body = {"kind": "text_to_image", "request": request, "options": {"previews": 0}}
    answer = (await http.post("/api/jobs", json=body)).raise_for_status().json()
    wish.acknowledge(answer["id"])
    while True:
        try:
            async with http.stream("GET", f"/api/jobs/{answer['id']}/events") as events:
                lines = [line async for line in events.aiter_lines() if line.startswith("data: ")]
            job = json.loads(lines[-1].removeprefix("data: ")).get("job", {})
            if job.get("state") == "done":
                return (await http.get(job["files"][0]["url"])).raise_for_status().content
        except (httpx.TransportError, IndexError):
            await asyncio.sleep(0.5)


async def by_openai(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Ask OpenAI's route."""
    answer = await http.post("/v1/images/generations", json=wish.fields | {"size": f"{SIDE}x{SIDE}"})
    return base64.b64decode(answer.raise_for_status().json()["data"][0]["b64_json"])


async def by_a1111(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Ask AUTOMATIC1111's route, for what our defaults are."""
    own = {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "cfg_scale": own_guidance()}
    answer = await http.post("/sdapi/v1/txt2img", json=wish.fields | own | {"width": SIDE, "height": SIDE})
    return base64.b64decode(answer.raise_for_status().json()["images"][0])


async def by_huggingface(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Ask as huggingface_hub.InferenceClient does."""
    parameters = {"num_inference_steps": wish.steps, "seed": wish.seed, "width": SIDE, "height": SIDE}
    return (await http.post("/", json={"inputs": wish.prompt, "parameters": parameters})).raise_for_status().content


async def by_comfy(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Queue a graph as ComfyUI's scripts do, poll its history, and view the picture."""
    answer = (await http.post("/prompt", json={"prompt": graph(wish)})).raise_for_status().json()
    wish.acknowledge(answer["prompt_id"])
    while True:
        with suppress(httpx.TransportError):
            history = (await http.get(f"/history/{answer['prompt_id']}")).json()
            if (prompt := history.get(answer["prompt_id"])) and prompt["status"]["completed"]:
                ((image,),) = (output["images"] for output in prompt["outputs"].values())
                return (await http.get("/view", params=image)).raise_for_status().content
        await asyncio.sleep(0.5)


async def by_mcp(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Call the tool that draws, as the SDK's client of the 2025-06-18 protocol posts it."""
    arguments = wish.fields | {"width": SIDE, "height": SIDE}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "draw", "arguments": arguments}}
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    answer = (await http.post("/mcp", json=call, headers=headers)).raise_for_status()
    *_, last = (line for line in answer.text.splitlines() if line.startswith("data: "))
    result = json.loads(last.removeprefix("data: "))["result"]
    if result.get("isError"):
        raise httpx.HTTPStatusError(result["content"][0]["text"], request=answer.request, response=answer)
    return base64.b64decode(result["content"][0]["data"])


async def by_riffusion(http: httpx.AsyncClient, wish: Wish) -> bytes:
    """Ask for a clip, and take its sound."""
    start, end = {"prompt": wish.prompt, "seed": wish.seed}, {"prompt": END, "seed": wish.seed + 1}
    body = {"start": start, "end": end, "alpha": 0.5, "num_inference_steps": wish.steps}
    answer = (await http.post("/run_inference/", json=body)).raise_for_status().json()
    return base64.b64decode(answer["audio"].partition(",")[2])


def graph(wish: Wish) -> Json:
    """Return ComfyUI's usual graph for what is asked."""
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    sampling = {"sampler_name": "dpmpp_2m", "scheduler": "karras", "cfg": own_guidance(), "denoise": 1.0}
    nodes: dict[str, tuple[str, Json]] = {
        "3": ("KSampler", {"seed": wish.seed, "steps": wish.steps, **sampling, **links}),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": "reverie-emoji.safetensors"}),
        "5": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": wish.prompt, "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "", "clip": ["4", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "load"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def own_guidance() -> float:
    """Return the bundled model's own guidance."""
    recommended = Path(reverie.__file__).parent / "assets/bundled/recommended.json"
    return float(json.loads(recommended.read_text())["guidance"])


Ask = Callable[[httpx.AsyncClient, Wish], Awaitable[bytes]]
PROTOCOLS: dict[str, Ask] = {
    "jobs": by_jobs,
    "openai": by_openai,
    "a1111": by_a1111,
    "huggingface": by_huggingface,
    "comfy": by_comfy,
    "mcp": by_mcp,
    "riffusion": by_riffusion,
}
