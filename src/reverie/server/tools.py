"""Tools for assistants (Model Context Protocol): draw, edit, animate, compare, music; on a server or right here."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import secrets
import threading
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import AudioContent, CallToolResult, ContentBlock, ImageContent, TextContent
from PIL import Image
from pydantic import Field, ValidationError

from reverie.errors import ReverieError
from reverie.requests import adapter_files
from reverie.server.answers import client_of, dispatcher_of, failure
from reverie.server.guard import Refusal
from reverie.server.settings import Settings
from reverie.server.shelf import FILE_URL, media_type
from reverie.server.submissions import Submission
from reverie.server.worker import LoadedModels, Said, Task, carry_out, encode_preview

Json = dict[str, Any]
Made = tuple[list[tuple[Path, str]], Json]
"""Files, each with where the client finds it, and the result."""
Run = Callable[[Json, Context], Awaitable[Made]]
"""Do a job, the body of `POST /api/jobs`."""
MOST = 1 << 20  # bytes of a file that the answer holds

File = Annotated[str, Field(description="a path or URL, the name of a result, or a data URL")]
Negative = Annotated[str, Field(description="what to keep away from")]
Seed = Annotated[int | None, Field(description="the same seed gives the same again")]
Model = Annotated[str | None, Field(description="a model's name")]
More = Annotated[Json | None, Field(description="further fields, such as steps, guidance, sampler, schedule, loras")]
Loop = Annotated[bool, Field(description="let the end lead into the beginning")]


class Tools(MCPServer):
    """The tools, over what does their jobs; an error is one line."""

    def __init__(self, run: Run) -> None:
        super().__init__("reverie", version=version("reverie"), log_level="WARNING")
        self._run = run
        for tool in (self.draw, self.edit, self.animate, self.music, self.compare):
            self.add_tool(tool, structured_output=False)

    async def call_tool(self, name: str, arguments: Json, context: Context | None = None) -> Any:
        """Call a tool. Raises ToolError."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            text = str(error).removeprefix(f"Error executing tool {name}: ")
            if isinstance(error.__cause__, ValidationError):
                first = error.__cause__.errors()[0]
                text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise ToolError(" ".join(text.split())) from error

    async def draw(
        self,
        context: Context,
        prompt: str,
        negative: Negative = "",
        width: Annotated[int | None, Field(description="pixels; the model's own if not given")] = None,
        height: int | None = None,
        count: int = 1,
        seed: Seed = None,
        model: Model = None,
        more: More = None,
    ) -> CallToolResult:
        """Draw pictures of a prompt."""
        fields = {"prompt": prompt, "negative": negative, "width": width, "height": height}
        return await self._make(context, "text_to_image", model, more, fields | {"count": count, "seed": seed})

    async def edit(
        self,
        context: Context,
        image: File,
        prompt: Annotated[str, Field(description="what the picture, or what is painted of it, shall show")],
        mask: Annotated[str | None, Field(description="a picture, white where it is painted, or 'transparent'")] = None,
        strength: Annotated[float | None, Field(description="0 to 1, how far to go from the picture")] = None,
        negative: Negative = "",
        seed: Seed = None,
        model: Model = None,
        more: More = None,
    ) -> CallToolResult:
        """Draw a picture anew, or what a mask shows in white, or where it is transparent."""
        fields = {"prompt": prompt, "negative": negative, "init": _name(image), "strength": strength, "seed": seed}
        fields["mask"] = None if mask in (None, "transparent") else _name(mask)
        return await self._make(context, "image_to_image" if mask is None else "inpaint", model, more, fields)

    async def animate(
        self,
        context: Context,
        prompts: Annotated[list[str], Field(description="what the film goes through", min_length=1)],
        seconds: float = 4.0,
        fps: float = 12.0,
        loop: Loop = False,
        format: Literal["mp4", "webm", "gif", "webp"] = "mp4",
        seed: Seed = None,
        model: Model = None,
        more: More = None,
    ) -> CallToolResult:
        """Draw a film that goes from prompt to prompt."""
        fields = {"keyframes": prompts, "seconds": seconds, "fps": fps, "loop": loop, "seed": seed}
        return await self._make(context, "animation", model, more, fields, format)

    async def music(
        self,
        context: Context,
        prompt: Annotated[str, Field(description="such as: jazz saxophone with drums")],
        seconds: float | None = None,
        bpm: Annotated[float | None, Field(description="beats a minute; the length becomes whole bars")] = None,
        loop: Loop = False,
        format: Literal["wav", "mp3", "flac", "ogg"] = "wav",
        seed: Seed = None,
        model: Model = None,
        more: More = None,
    ) -> CallToolResult:
        """Play music of a prompt."""
        fields = {"prompt": prompt, "seconds": seconds, "bpm": bpm, "loop": loop, "seed": seed}
        return await self._make(context, "music", model, more, fields, format)

    async def compare(
        self, context: Context, pictures: list[File] | None = None, texts: list[str] | None = None
    ) -> CallToolResult:
        """Tell how alike pictures and texts are: the cosine of each with each, as CLIP sees them."""
        fields = {"pictures": list(map(_name, pictures or [])), "texts": texts}
        return await self._make(context, "compare", None, None, fields)

    async def _make(
        self, context: Context, kind: str, model: str | None, more: Json | None, fields: Json, *formats: str
    ) -> CallToolResult:
        request = {name: value for name, value in {**(more or {}), **fields}.items() if value is not None}
        body = {"kind": kind, "request": request, "model": model}
        body["options"] = {"previews": 0, "keep": kind != "compare", "formats": formats}
        try:
            files, result = await self._run(body, context)
        except (ReverieError, Refusal) as error:
            raise ToolError(getattr(error, "detail", str(error))) from error
        answer = {"files": [place for _, place in files]} if files else {}
        answer |= {name: value for name, value in result.items() if name != "timings"}
        shown = [block for path, _ in files if (block := await asyncio.to_thread(_content, path)) is not None]
        return CallToolResult(content=[*shown, TextContent(text=json.dumps(answer, ensure_ascii=False))])


def _name(file: str) -> str:
    """Return a result's name where its URL is given."""
    return re.sub(rf"^https?://[^/]+{FILE_URL}", "", file)


def _content(path: Path) -> ContentBlock | None:
    """Return a picture, small where its file is large, or a sound that is not large; None for what is neither."""
    kind, data = media_type(path), path.read_bytes()
    if kind.startswith("image/") and len(data) > MOST:
        with Image.open(path) as picture:
            kind, data = "image/jpeg", encode_preview(picture)
    block = {"image": ImageContent, "audio": AudioContent}.get(kind.partition("/")[0])
    return None if block is None or len(data) > MOST else block(data=base64.b64encode(data).decode(), mime_type=kind)


async def run_served(body: Json, context: Context) -> Made:
    """Do a job on the server that a tool is called on."""
    request = context.request_context.request
    served = dispatcher_of(request)
    try:
        record = await served.submit(body, client_of(request))
    except ReverieError as error:
        raise ReverieError(served.settings.describe(str(error))) from error
    try:
        async for event in served.watch(record.id):
            if event["type"] == "progress":
                await context.report_progress(event["done"], event["total"])
        record = served.get(record.id) or record
    finally:
        if not record.is_over and not served.closing:
            served.cancel(record)
    if record.state != "done":
        raise failure(record)
    base = str(request.base_url).rstrip("/") + FILE_URL
    return [(path, base + path.name) for path in served.paths(record)], record.result or {}


def run_here(settings: Settings) -> Run:
    """Return what does jobs in this process, one after another."""
    for folder in (settings.outputs, settings.uploads):
        folder.mkdir(parents=True, exist_ok=True)
    if settings.loras:
        os.environ[adapter_files.FOLDERS] = os.pathsep.join(map(str, settings.loras))
    models, turn = LoadedModels(settings), asyncio.Lock()

    async def run(body: Json, context: Context) -> Made:
        loop, stopped, said = asyncio.get_running_loop(), threading.Event(), asyncio.Queue[Said]()
        submission = await asyncio.to_thread(Submission.of(body).fill, settings)
        task, files = Task(secrets.token_hex(12), submission), list[tuple[Path, str]]()

        def work() -> None:
            def say(one: Said) -> None:
                loop.call_soon_threadsafe(said.put_nowait, one)

            carry_out(task, settings, models.load, lambda _: stopped.is_set(), say)

        async with turn:
            working = asyncio.create_task(asyncio.to_thread(work))
            try:
                while (one := await said.get()).what not in ("done", "failed"):
                    if one.what == "progress":
                        await context.report_progress(one.value["done"], one.value["total"])
                    elif one.what == "file":
                        files.append((settings.outputs / one.value, str(settings.outputs / one.value)))
            finally:
                stopped.set()
                await working
        if one.what == "failed":
            raise ReverieError(one.value[0])
        return files, one.value

    return run
