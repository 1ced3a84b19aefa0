"""ComfyUI's interface, as its scripts and other programs speak it: graphs of core nodes, at the root and below /api.

A graph becomes a request by the reader of those that pictures carry. What that cannot honour is refused, as ComfyUI
refuses (`node_errors`). Names, numbers and forms are those of ComfyUI 0.3.64: server.py, execution.py, nodes.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Form, Query, Request, Response, UploadFile, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from reverie.errors import ReverieError
from reverie.files import name_of
from reverie.media.pictures import decode, encode
from reverie.requests.foreign import core_nodes
from reverie.requests.foreign.core_nodes import of_class
from reverie.requests.foreign.draft import stem_of
from reverie.requests.references import content_of
from reverie.server.answers import Served, client_of, dispatcher_of
from reverie.server.api import adapters, describe_model, download, machine_memory, receive_json
from reverie.server.dispatcher import ALL, Dispatcher, Event, QueueFull
from reverie.server.guard import Refusal
from reverie.server.shelf import json_object
from reverie.server.store import FINAL, JobRecord
from reverie.server.submissions import Submission

Json = dict[str, Any]
router = APIRouter(include_in_schema=False)  # it is ComfyUI's

VERSION = "0.3.64"
LOADERS, SAMPLERS = ("LoadImage", "LoadImageMask"), ("KSampler", "KSamplerAdvanced")
SHOWN = {"SaveImage": "output", "PreviewImage": "temp"}
PREVIEW = struct.pack(">II", 1, 1)  # of the binary messages a preview, of the pictures a JPEG
NAMES = 4096  # of uploads that are remembered
# The upload that a client means by a name of its own, as scripts use it that do not read the answer.
_uploads: WeakKeyDictionary[Dispatcher, dict[tuple[str, str], str]] = WeakKeyDictionary()


# Nodes


@router.get("/object_info")
@router.get("/object_info/{name}")
async def object_info(served: Served, name: str | None = None) -> Json:
    """Describe the nodes that a graph may hold, or one of them."""
    return {kind: info for kind, info in core_nodes.table(await _lists(served)).items() if name in (None, kind)}


@router.get("/models")
@router.get("/models/{folder}")
async def models(served: Served, folder: str | None = None) -> list[str]:
    """List the kinds of models, or the files of one."""
    lists = await _lists(served)
    if folder is not None and folder not in lists:
        raise Refusal(404, "there is no such folder of models")
    return list(lists) if folder is None else lists[folder]


@router.get("/embeddings")
async def embeddings(served: Served) -> list[str]:
    """List the textual inversions."""
    return [stem_of(name) for name in (await _lists(served))["embeddings"]]


@router.get("/extensions")
async def extensions() -> list[str]:
    """List the page's extensions, of which there are none."""
    return []


async def _lists(served: Dispatcher) -> dict[str, list[str]]:
    places = served.settings.places().items()
    drawing = [(name, place) for name, place in places if describe_model(place)["makes"] == "pictures"]
    checkpoints = [place.name if place.is_file() else name for name, place in drawing]
    files = await adapters(served)
    lists = {"checkpoints": checkpoints, "controlnet": files["controlnets"], "diffusion_models": [], "vae": []}
    return lists | {name: files[name] for name in ("loras", "embeddings")}


# Prompts


@router.get("/prompt")
async def queue_length(served: Served) -> Json:
    """Tell how much is to be done."""
    return {"exec_info": {"queue_remaining": sum(not record.is_over for record in served.active.values())}}


@router.post("/prompt", response_model=None)
async def queue_prompt(request: Request, served: Served) -> Json | Response:
    """Queue a graph."""
    body = await _body(request)
    client, id = str(body.get("client_id") or "")[:64], str(body.get("prompt_id") or secrets.token_hex(12))
    if not re.fullmatch(r"[\w-]{16,64}", id):
        raise Refusal(400, "`prompt_id` is a UUID", param="prompt_id")
    nodes = core_nodes.table(await _lists(served))
    graph = core_nodes.reduce(core_nodes.as_graph(body.get("prompt")), nodes)
    for name in of_class(graph, *LOADERS):
        inputs = graph[name]["inputs"]
        inputs["image"] = _upload(request, served, str(inputs.get("image")))
    if errors := core_nodes.check(graph, nodes, lambda name: served.shelf.find(name) is not None):
        return _refuse(graph, errors)
    if not of_class(graph, *SHOWN):
        return _refuse(graph, {}, "prompt_no_outputs")
    try:
        submission, notes = await asyncio.to_thread(_read, served, graph, client)
        record = await served.submit(submission, f"{client_of(request)} {client}".strip(), id)
    except QueueFull:
        raise
    except ReverieError as error:
        why = served.settings.describe(str(error))
        at = [*of_class(graph, *SAMPLERS), *of_class(graph, *SHOWN)][0]
        return _refuse(graph, {at: [core_nodes.error("custom_validation_failed", why)]})
    record.notes += notes
    return {"prompt_id": record.id, "number": record.number, "node_errors": {}}


def _refuse(graph: Json, errors: Mapping[str, list[Json]], kind: str = "prompt_outputs_failed_validation") -> Response:
    savers = {"dependent_outputs": of_class(graph, *SHOWN)}
    said = {name: {"errors": found, "class_type": graph[name]["class_type"]} | savers for name, found in errors.items()}
    lines = "; ".join(f"{one['message']}: {one['details']}" for found in errors.values() for one in found)
    return JSONResponse({"error": core_nodes.error(kind, lines), "node_errors": said}, 400)


def _read(served: Dispatcher, graph: Json, client: str) -> tuple[Submission, list[str]]:
    """Return the job of a graph, and notes. Raises ReverieError for what is not honoured."""
    settings = served.settings
    beside = sorted({place.parent for place in settings.places().values()})
    folders = (settings.uploads, settings.outputs, *settings.controlnets, *settings.embeddings, *beside)
    request, model, notes = core_nodes.request_of(graph, *folders)
    fields = json.loads(request.to_json())
    for part in (*fields["controls"], *filter(None, [fields["refiner"]])):
        part["model"] = name_of(part["model"])  # not the place
    fields["embeddings"] = [name_of(file) for file in fields["embeddings"]]
    body = {"kind": fields.pop("kind"), "request": fields, "model": name_of(model)}
    attached = {"graph": graph, "client_id": client}
    return Submission.of(body | {"options": {"previews": 2 if client else 0}, "attached": attached}), notes


# What becomes of them


@router.websocket("/ws")
async def follow(socket: WebSocket, clientId: str = "") -> None:
    """Tell a client what happens to its prompts, and how long the queue is."""
    served, client = dispatcher_of(socket), clientId[:64] or secrets.token_hex(16)
    await socket.accept()
    telling = asyncio.create_task(_tell(served, socket, client))
    telling.add_done_callback(lambda task: task.cancelled() or task.exception())  # a client that is gone
    await asyncio.sleep(0)  # it listens from here on
    await socket.send_json({"type": "status", "data": {"status": await queue_length(served), "sid": client}})
    try:
        while True:
            await receive_json(socket)  # nothing that is awaited
    except (WebSocketDisconnect, KeyError):  # gone, or it sends bytes
        pass
    finally:
        telling.cancel()


async def _tell(served: Dispatcher, socket: WebSocket, client: str) -> None:
    async for event in served.watch(ALL):
        if event["type"] == "state":
            await socket.send_json({"type": "status", "data": {"status": await queue_length(served)}})
        record = served.get(event["id"])
        if record is None or _origin(record)[1] != client:
            continue
        if event["type"] == "preview":
            await socket.send_bytes(PREVIEW + content_of(event["image"]))
        for kind, data in _messages(record, event):
            await socket.send_json({"type": kind, "data": data})


def _origin(record: JobRecord) -> tuple[Json, str]:
    """Return the graph of a job, empty for those of other protocols, and the client's id."""
    attached = record.submission.attached or {}
    return core_nodes.as_graph(attached.get("graph")), str(attached.get("client_id", ""))


def _messages(record: JobRecord, event: Event) -> Iterator[tuple[str, Json]]:
    """Yield what ComfyUI tells where something happens to a job."""
    graph, _ = _origin(record)
    prompt, node = {"prompt_id": record.id}, next(iter(of_class(graph, *SAMPLERS)), "")
    now = prompt | {"timestamp": int(1000 * (record.finished or time.time()))}
    here = now | {"node_id": node, "node_type": graph.get(node, {}).get("class_type"), "executed": []}
    state = event["job"]["state"] if event["type"] == "state" else event["type"]
    if state == "progress":
        yield "progress", prompt | {"node": node, "value": event["done"], "max": event["total"]}
    elif state == "running":
        yield "execution_start", now
        yield "execution_cached", now | {"nodes": []}
        yield "executing", prompt | {"node": node, "display_node": node}
    elif state == "done":
        for name, output in _outputs(record).items():
            yield "executed", prompt | {"node": name, "display_node": name, "output": output}
        yield "execution_success", now
    elif state == "failed":
        why: Json = {"exception_message": record.error, "exception_type": "ReverieError", "traceback": []}
        yield "execution_error", here | why | {"current_inputs": {}, "current_outputs": []}
    elif state == "cancelled":
        yield "execution_interrupted", here
    if state in FINAL:
        yield "executing", prompt | {"node": None}


def _outputs(record: JobRecord) -> Json:
    """Return the pictures of a job by the nodes that save or show them."""
    graph, _ = _origin(record)
    kinds = {name: SHOWN[graph[name]["class_type"]] for name in of_class(graph, *SHOWN)}
    return {
        name: {"images": [{"filename": file, "subfolder": "", "type": kind} for file in record.files]}
        for name, kind in kinds.items()
    }


@router.get("/history")
async def history(served: Served, max_items: Annotated[int, Query(ge=0, le=1000)] = 64) -> Json:
    """Tell of the last prompts that are over, the newest last."""
    return {id: past for one in served.store.page({}, limit=max_items)[::-1] for id, past in _past(one).items()}


@router.get("/history/{id}")
async def history_of(id: str, served: Served) -> Json:
    """Tell of a prompt; nothing until it is over."""
    return {} if (record := served.get(id)) is None else _past(record)


def _past(record: JobRecord) -> Json:
    if not record.is_over or not _origin(record)[0]:
        return {}
    events = [{"type": "state", "job": {"state": state}} for state in ("running", record.state)]
    said = [message for event in events for message in _messages(record, event) if message[0].startswith("execution_")]
    done = record.state == "done"
    status = {"status_str": "success" if done else "error", "completed": done, "messages": said}
    return {
        record.id: {"prompt": _item(record), "outputs": _outputs(record) if done else {}, "status": status, "meta": {}}
    }


def _item(record: JobRecord) -> list[Any]:
    graph, client = _origin(record)
    return [record.number, record.id, graph, {"client_id": client}, of_class(graph, *SHOWN)]


@router.get("/queue")
async def queue(served: Served) -> Json:
    """List what is drawn and what waits."""
    running = [_item(record) for record in served.active.values() if record.state == "running"]
    return {"queue_running": running, "queue_pending": [_item(served.active[id]) for id in served.waiting.order()]}


@router.post("/queue", response_class=Response)
async def change_queue(request: Request, served: Served) -> Response:
    """Take prompts out of the queue: those that are named, or all that come from the client's address."""
    body = await _body(request)
    named = body["delete"] if isinstance(body.get("delete"), list) else []
    _cancel(request, served, "queued", lambda id: bool(body.get("clear")) or id in named)
    return Response()


@router.post("/interrupt", response_class=Response)
async def interrupt(request: Request, served: Served) -> Response:
    """Stop what is drawn: the prompt that is named, or all that come from the client's address."""
    named = (await _body(request)).get("prompt_id")
    _cancel(request, served, "running", lambda id: named in (None, id))
    return Response()


def _cancel(request: Request, served: Dispatcher, state: str, is_meant: Callable[[str], bool]) -> None:
    for record in list(served.active.values()):
        own = f"{record.client} ".startswith(f"{client_of(request)} ") and _origin(record)[0]
        if own and record.state == state and is_meant(record.id):
            served.cancel(record)


@router.post("/free", response_class=Response)
async def free(request: Request, served: Served) -> Response:
    """Let go of the models."""
    if (await _body(request)).get("unload_models"):
        for name in served.loaded:
            served.unload(name)
    return Response()


@router.get("/system_stats")
async def system_stats(served: Served) -> Json:
    """Tell of the machine; bytes of memory are 0 where the system does not say."""
    total, unused = machine_memory()
    system = {"os": os.name, "ram_total": total, "ram_free": unused, "comfyui_version": VERSION, "argv": []}
    system |= {"python_version": sys.version, "pytorch_version": "", "embedded_python": False}
    device = {"name": served.settings.device, "type": "cpu", "index": 0}
    sizes = {f"{of}vram_{what}": size for of in ("", "torch_") for what, size in (("total", total), ("free", unused))}
    return {"system": system, "devices": [device | sizes]}


# Files


@router.get("/view", response_class=Response)
async def view(request: Request, served: Served, filename: str, subfolder: str = "") -> Response:
    """Return a picture."""
    name = _upload(request, served, filename)
    return await download(f"{subfolder}/{name}" if subfolder else name, request, served)


@router.post("/upload/image")
async def upload_image(image: UploadFile, request: Request, served: Served) -> Json:
    """Keep a picture for LoadImage, which may name it as the answer does or as the client did."""
    return await _keep(request, served, await image.read(), image.filename)


@router.post("/upload/mask")
async def upload_mask(
    image: UploadFile, original_ref: Annotated[str, Form()], request: Request, served: Served
) -> Json:
    """Keep a picture that is here, `original_ref`, with the transparency of another."""
    named = re.search(r'"filename"\s*:\s*"([^"]+)"', original_ref)
    original = served.shelf.find(_upload(request, served, named[1])) if named else None
    if original is None:
        raise Refusal(404, "there is no such picture", param="original_ref")
    data = await image.read()

    def mask(original: Path) -> bytes:
        picture, alpha = decode(original.read_bytes()).convert("RGBA"), decode(data).convert("RGBA").getchannel("A")
        picture.putalpha(alpha.resize(picture.size))
        return encode(picture)

    return await _keep(request, served, await asyncio.to_thread(mask, original), image.filename)


async def _keep(request: Request, served: Dispatcher, data: bytes, name: str | None) -> Json:
    path, names = await asyncio.to_thread(served.shelf.add, data), _uploads.setdefault(served, {})
    names[client_of(request), name or ""] = path.name
    while len(names) > NAMES:
        del names[next(iter(names))]
    return {"name": path.name, "subfolder": "", "type": "input"}


def _upload(request: Request, served: Dispatcher, name: str) -> str:
    """Return the name here of what a client names, perhaps with ComfyUI's folder behind it."""
    name = re.sub(r" \[(input|output|temp)\]$", "", name)
    return _uploads.get(served, {}).get((client_of(request), name), name)


async def _body(request: Request) -> Json:
    """Return the body's object, whatever type it is sent as: ComfyUI's scripts name none."""
    if (body := json_object(await request.body() or b"{}")) is None:
        raise Refusal(400, "the body is no JSON object")
    return body
