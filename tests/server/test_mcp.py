"""The tools of the Model Context Protocol, called by the client of its official SDK: over HTTP, and of a process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import AudioContent, CallToolResult, ImageContent, TextContent
from PIL import Image

import reverie

Json = dict[str, Any]
TOOLS = ["draw", "edit", "animate", "music", "compare"]


def told(result: CallToolResult) -> Json:
    assert not result.is_error, result.content
    return json.loads(result.content[-1].text)  # type: ignore[union-attr]


def picture(result: CallToolResult, index: int = 0) -> Image.Image:
    block = result.content[index]
    assert isinstance(block, ImageContent)
    return Image.open(io.BytesIO(base64.b64decode(block.data)))


def complaint(result: CallToolResult) -> str:
    assert result.is_error
    (text,) = result.content
    assert isinstance(text, TextContent)
    assert "\n" not in text.text
    return text.text


def on_server(url: str, ask: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        async with (
            httpx2.AsyncClient(headers={"Authorization": "Bearer secret"}, timeout=60) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            await ask(client)

    asyncio.run(run())


def test_tools_of_a_server(url: str, model_folder: Path) -> None:
    drawn = reverie.load(model_folder / "tiny").text_to_image("a bear", negative="snow", seed=7, steps=2, count=2)
    steps: list[tuple[float, float | None]] = []

    async def follow(done: float, total: float | None, message: str | None) -> None:
        steps.append((done, total))

    async def ask(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == TOOLS
        assert all(tool.description for tool in tools)
        for tool in tools:
            assert "$ref" not in json.dumps(tool.input_schema)
        fields = {"prompt": "a bear", "negative": "snow", "count": 2, "seed": 7, "steps": 2}
        made = await client.call_tool("draw", fields, progress_callback=follow)
        assert [picture(made, index).tobytes() for index in (0, 1)] == [one.tobytes() for one in drawn]
        said = told(made)
        assert (said["seeds"], len(said["files"])) == ([7, 8], 2)
        assert steps[-1] == (4, 4)
        again = {"init": said["files"][0], "prompt": "a bear", "strength": 0.5, "seed": 7, "steps": 2}
        edited = picture(await client.call_tool("edit", again))
        own = reverie.load(model_folder / "tiny").image_to_image("a bear", drawn[0], strength=0.5, seed=7, steps=2)
        assert edited.tobytes() == own[0].tobytes()
        alike = told(await client.call_tool("compare", {"pictures": said["files"], "texts": ["a bear"]}))
        assert (len(alike["cosines"]), len(alike["cosines"][0])) == (2, 1)
        film = await client.call_tool(
            "animate",
            {
                "keyframes": ["a bear", "an apple"],
                "frames": None,
                "seconds": 0.25,
                "fps": 12,
                "format": "gif",
                "steps": 1,
            },
        )
        assert picture(film).n_frames == told(film)["frames"] == 3  # type: ignore[attr-defined]

    on_server(url, ask)


def test_what_a_tool_refuses_is_one_line(url: str) -> None:
    async def ask(client: Client) -> None:
        assert "no model 'other' here" in complaint(await client.call_tool("draw", {"prompt": "x", "model": "other"}))
        assert "init is missing" in complaint(await client.call_tool("edit", {}))
        assert "count 'many' is not possible" in complaint(await client.call_tool("draw", {"count": "many"}))
        assert "unknown format 'mp4'" in complaint(await client.call_tool("music", {"prompt": "x", "format": "mp4"}))
        unknown = await client.call_tool("draw", {"prompt": "x", "stepz": 3})
        assert "did you mean 'steps'?" in complaint(unknown)
        missing = await client.call_tool("edit", {"prompt": "x", "init": "/etc/passwd"})
        assert "there is no picture '/etc/passwd' here" in complaint(missing)
        assert complaint(await client.call_tool("fly", {})).startswith("there is no tool 'fly'")

    on_server(url, ask)


def test_tools_of_a_process_need_no_server(model_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    arguments = ["-m", "reverie", "mcp", "--model", str(model_folder / "tiny"), "--home", str(tmp_path / "home")]
    environment = {"PYTHONPATH": str(Path(reverie.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = StdioServerParameters(command=sys.executable, args=arguments, cwd=tmp_path, env=environment)

    async def ask() -> None:
        async with Client(process) as client:
            fields = {"prompt": "a bear", "init": "red.png", "strength": 0.5, "seed": 7, "steps": 2}
            made = await client.call_tool("edit", fields)
            (file,) = told(made)["files"]
            assert Path(file).parent == tmp_path / "home" / "outputs"
            assert Path(file).read_bytes() == base64.b64decode(made.content[0].data)  # type: ignore[union-attr]
            assert "at least 0.5" in complaint(await client.call_tool("edit", fields | {"strength": 0.1}))
            played = await client.call_tool("music", {"prompt": "funk bass", "seconds": 1, "steps": 1})
            sound = played.content[0]
            assert isinstance(sound, AudioContent)
            assert (sound.mime_type, told(played)["seconds"]) == ("audio/x-wav", [1.0])

    asyncio.run(ask())
