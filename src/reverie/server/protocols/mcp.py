"""The Model Context Protocol: tools for assistants to draw, edit, animate, compare and play music.

They are offered at /mcp of a server, and over stdin and stdout by a process without one. The protocol's library is
loaded when it is needed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import threading
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from reverie.errors import ReverieError
from reverie.media.pictures import encode_preview
from reverie.server.answers import client_of, dispatcher_of, failure
from reverie.server.dispatcher import Dispatcher
from reverie.server.guard import Refusal
from reverie.server.settings import Settings
from reverie.server.shelf import FILE_URL, media_type
from reverie.server.submissions import ASKED, FORMATS, Submission, fields_schema
from reverie.server.worker import LoadedModels, Said, Task, carry_out, offer_loras

if TYPE_CHECKING:
    from mcp import types
    from mcp.server import Server, ServerRequestContext

Json = dict[str, Any]
Made = tuple[list[tuple[Path, str]], Json]
"""Files, each with where the client finds it, and the result."""
Run = Callable[[Json, "ServerRequestContext[Any, Any]"], Awaitable[Made]]
"""Do a job, the body of `POST /api/jobs`."""
MOST = 1 << 20  # bytes of a file that the answer holds
UNTOLD = ("timings", "request", "requests")  # of what a job says, what an assistant need not read
URL = re.compile(rf'"https?://[^"/]+{FILE_URL}')  # before the name of a result, in JSON
MASK = "a picture, white where it is painted anew; or 'transparent', for what is; the whole is drawn anew if not given"
SAMPLING = "negative steps guidance sampler schedule seed loras"


class Tool(NamedTuple):
    """A tool: what it does, the kind of its request, the fields that it takes, the first needed, and its formats."""

    does: str
    kind: str
    fields: str
    formats: tuple[str, ...] = ()


TOOLS = {
    "draw": Tool("Draw pictures of a prompt.", "text_to_image", f"prompt width height count {SAMPLING}"),
    "edit": Tool(
        "Draw a picture anew, or a part of it.", "inpaint", f"init prompt mask strength fill only_masked {SAMPLING}"
    ),
    "animate": Tool(
        "Draw a film from prompt to prompt.",
        "animation",
        f"keyframes seconds fps loop ping_pong pace width height {SAMPLING}",
        FORMATS["films"],
    ),
    "music": Tool(
        "Play music of a prompt, or over a sound.",
        "music",
        f"prompt seconds bpm loop stereo to alpha walk init strength {SAMPLING}",
        FORMATS["music"],
    ),
    "compare": Tool("Tell how alike pictures and texts are, as CLIP sees them.", "compare", "pictures texts"),
}


def create_server(run: Run) -> Server:
    """Return the tools over what does their jobs."""
    from mcp import types
    from mcp.server import Server

    async def list_tools(
        context: ServerRequestContext[Any, Any], page: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools = TOOLS.items()
        return types.ListToolsResult(
            tools=[types.Tool(name=name, description=tool.does, input_schema=_schema(tool)) for name, tool in tools]
        )

    async def call_tool(
        context: ServerRequestContext[Any, Any], call: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            files, result = await run(_body(call.name, call.arguments or {}), context)
        except (ReverieError, Refusal) as error:
            line = " ".join(str(getattr(error, "detail", error)).split())
            return types.CallToolResult(content=[types.TextContent(text=line)], is_error=True)
        answer = {"files": [place for _, place in files]} if files else {}
        answer |= {name: value for name, value in result.items() if name not in UNTOLD}
        shown = [block for path, _ in files if (block := await asyncio.to_thread(_content, path)) is not None]
        return types.CallToolResult(content=[*shown, types.TextContent(text=json.dumps(answer, ensure_ascii=False))])

    return Server("reverie", version=version("reverie"), on_list_tools=list_tools, on_call_tool=call_tool)


def _schema(tool: Tool) -> Json:
    """Return the JSON schema of what a tool takes: its request's, with names in the place of files."""
    properties, names = fields_schema(ASKED[tool.kind])["properties"], tool.fields.split()
    taken = {name: properties[name] for name in names} | {"model": {"type": "string", "description": "its name"}}
    if "mask" in taken:
        taken["mask"] = {"type": "string", "description": MASK}
    if tool.formats:
        taken["format"] = {"type": "string", "enum": tool.formats}
    required = names[:1] if tool.kind != "compare" else []
    return {"type": "object", "properties": taken, "required": required, "additionalProperties": False}


def _body(name: str, arguments: Json) -> Json:
    """Return the job that a tool's arguments ask for. Raises ReverieError for a tool that there is not."""
    if (tool := TOOLS.get(name)) is None:
        raise ReverieError(f"there is no tool '{name}'; choose from {', '.join(TOOLS)}")
    given: Json = json.loads(URL.sub('"', json.dumps(arguments)))
    request = {name: value for name, value in given.items() if value is not None}
    model, format, kind = request.pop("model", None), request.pop("format", None), tool.kind
    if name == "edit" and "mask" not in request:
        kind = "image_to_image"
    elif request.get("mask") == "transparent":
        del request["mask"]
    options = {"previews": 0, "keep": kind != "compare", "formats": [format] if format else []}
    return {"kind": kind, "request": request, "model": model, "options": options}


def _content(path: Path) -> types.ContentBlock | None:
    """Return a picture, small where its file is large, or a sound that is not large; None for what is neither."""
    from mcp import types

    kind, data = media_type(path), path.read_bytes()
    if kind.startswith("image/") and len(data) > MOST:
        with Image.open(path) as picture:
            kind, data = "image/jpeg", encode_preview(picture)
    block = {"image": types.ImageContent, "audio": types.AudioContent}.get(kind.partition("/")[0])
    return None if block is None or len(data) > MOST else block(data=base64.b64encode(data).decode(), mime_type=kind)


class Endpoint:
    """The application at /mcp of one server."""

    def __init__(self) -> None:
        self._app: asyncio.Future[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._app is None:
            self._app = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(scope["app"].state.dispatcher, self._app))
        app = await asyncio.shield(self._app)
        await app(scope, receive, send)

    async def _serve(self, served: Dispatcher, app: asyncio.Future[ASGIApp]) -> None:
        """Run the protocol's sessions until the loop ends."""
        try:
            await asyncio.to_thread(import_module, "mcp.server")
        except ModuleNotFoundError as error:
            app.set_exception(Refusal(501, f"this needs {error.name}: pip install 'reverie[mcp]'"))
            return
        server = create_server(run_served)
        server.streamable_http_app(stateless_http=True, max_request_body_size=served.settings.limits.body, host="")
        async with server.session_manager.run():
            app.set_result(server.session_manager.handle_request)
            await asyncio.get_running_loop().create_future()


async def run_served(body: Json, context: ServerRequestContext[Any, Any]) -> Made:
    """Do a job on the server that a tool is called on."""
    request = context.request
    assert request is not None  # over HTTP
    served = dispatcher_of(request)
    try:
        record = await served.submit(body, client_of(request))
    except ReverieError as error:
        raise ReverieError(served.settings.describe(str(error))) from error
    try:
        async for event in served.watch(record.id):
            if event["type"] == "progress":
                await context.session.report_progress(event["done"], event["total"])
        record = served.get(record.id) or record
    finally:
        served.abandon(record)
    if record.state != "done":
        raise failure(record)
    base = str(request.base_url).rstrip("/") + FILE_URL
    return [(path, base + path.name) for path in served.paths(record)], record.result or {}


def run_here(settings: Settings) -> Run:
    """Return what does jobs in this process, one after another."""
    for folder in (settings.outputs, settings.uploads):
        folder.mkdir(parents=True, exist_ok=True)
    offer_loras(settings)
    models, turn = LoadedModels(settings), asyncio.Lock()

    async def run(body: Json, context: ServerRequestContext[Any, Any]) -> Made:
        loop, stopped, said = asyncio.get_running_loop(), threading.Event(), asyncio.Queue[Said]()
        submission = await asyncio.to_thread(Submission.of(body).fill, settings)
        task = Task(secrets.token_hex(12), submission)

        def work() -> None:
            def say(one: Said) -> None:
                loop.call_soon_threadsafe(said.put_nowait, one)

            carry_out(task, settings, models.load, lambda _: stopped.is_set(), say)

        async with turn:
            working = asyncio.create_task(asyncio.to_thread(work))
            try:
                while (one := await said.get()).what not in ("done", "failed"):
                    if one.what == "progress":
                        await context.session.report_progress(one.value["done"], one.value["total"])
            finally:
                stopped.set()
                await working
        if one.what == "failed":
            raise ReverieError(one.value[0])
        files = [settings.outputs / name for name in one.value.pop("files")]
        return [(file, str(file)) for file in files], one.value

    return run


def serve(settings: Settings) -> None:
    """Offer the tools over stdin and stdout until stdin ends."""
    from mcp.server.stdio import stdio_server

    async def run() -> None:
        server = create_server(run_here(settings))
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    asyncio.run(run())
