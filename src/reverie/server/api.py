"""The server's own interface below /api: jobs, files, models, and what is known of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response, UploadFile, WebSocket
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel
from starlette.websockets import WebSocketDisconnect

from reverie.jobs.questions import Classification, Comparison, Embedding, Question, Search
from reverie.requests.base import SampledRequest
from reverie.requests.records import read_record
from reverie.requests.references import BUNDLED, BUNDLED_NAME, DATA_URL, OWNERS, content_of, locate_part, resolving
from reverie.requests.samplers import RECORDS, SPACINGS, few_steps, schedule_label
from reverie.requests.templates import read_styles
from reverie.server.answers import Served, answer, client_of, dispatcher_of
from reverie.server.dispatcher import ALL, Dispatcher
from reverie.server.guard import Refusal
from reverie.server.settings import SPECTROGRAM
from reverie.server.shelf import describe_files, json_object, media_type
from reverie.server.store import JobRecord
from reverie.server.submissions import FORMATS, Submission, fields_schema

PAGE_SIZE = 200  # jobs of one answer at most
FOREVER = "private, max-age=31536000, immutable"  # a name stands for one content

router = APIRouter(prefix="/api")
Json = dict[str, Any]


# Jobs


@router.post("/jobs", status_code=202)
async def submit(submission: Submission, request: Request, response: Response, served: Served) -> Json:
    """Queue a job; once this answers it is not lost."""
    record = await served.submit(submission.replace(attached=None), client_of(request))
    response.headers["Location"] = f"/api/jobs/{record.id}"
    return served.describe(record)


@router.get("/jobs")
async def list_jobs(
    served: Served,
    state: Literal["queued", "running", "done", "failed", "cancelled"] | None = None,
    client: str | None = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE)] = 50,
) -> Json:
    """List jobs, the newest first."""
    found = served.store.page({"state": state, "client": client}, limit=limit)
    return {"jobs": [served.describe(served.active.get(record.id, record)) for record in found]}


@router.get("/jobs/{id}")
async def show_job(id: str, served: Served) -> Json:
    """Tell how a job is."""
    record = _job(served, id)
    return served.describe(record) | {"preview": record.preview}


@router.delete("/jobs/{id}")
async def cancel_job(id: str, served: Served) -> Json:
    """Cancel a job: at once where it is queued, between two steps where it runs."""
    record = _job(served, id)
    served.cancel(record)
    return served.describe(record)


@router.get("/jobs/{id}/events", response_class=StreamingResponse)
async def stream_job(id: str, served: Served) -> StreamingResponse:
    """Stream what happens to a job as server-sent events, from its present state to its end."""
    _job(served, id)

    async def lines() -> AsyncIterator[str]:
        async for event in served.watch(id):
            yield server_sent_event(event["type"], event)

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def server_sent_event(name: str, data: Json) -> str:
    """Return a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


@router.websocket("/ws")
async def follow(socket: WebSocket) -> None:
    """Tell what happens to the jobs that a client watches, and cancel those that it names."""
    served = dispatcher_of(socket)
    await socket.accept()
    watching: dict[str, asyncio.Task[None]] = {}

    async def pass_on(id: str) -> None:
        async for event in served.watch(id):
            await socket.send_json(event)

    try:
        while True:
            message = await receive_json(socket)
            kind, id = message.get("type"), str(message.get("id"))
            if kind == "watch" and id not in watching and (id == ALL or served.get(id)):
                watching[id] = asyncio.create_task(pass_on(id))
                watching[id].add_done_callback(lambda _, id=id: watching.pop(id, None))  # type: ignore[misc]
            elif kind == "unwatch" and id in watching:
                watching.pop(id).cancel()
            elif kind == "cancel" and (record := served.get(id)):
                served.cancel(record)
            elif kind not in ("watch", "unwatch"):
                await socket.send_json({"type": "error", "message": "send watch, unwatch or cancel, and a job's id"})
    except WebSocketDisconnect:
        pass
    finally:
        for task in list(watching.values()):
            task.cancel()


async def receive_json(socket: WebSocket) -> Json:
    """Return a message that is a JSON object, or an empty one where it is something else."""
    return json_object(await socket.receive_text()) or {}


def _job(served: Dispatcher, id: str) -> JobRecord:
    if (record := served.get(id)) is None:
        raise Refusal(404, "there is no such job")
    return record


@router.get("/gallery")
async def gallery(
    served: Served,
    kind: str | None = None,
    query: Annotated[str, Query(max_length=200)] = "",
    before: Annotated[int | None, Query(ge=1, lt=1 << 62)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_SIZE)] = 50,
) -> Json:
    """List what was made, the newest first, with its requests; `next` is `before` of the next page."""
    found = served.store.page({"state": "done", "kind": kind}, query, before, limit)
    return {"jobs": [served.describe(one) for one in found], "next": found[-1].number if len(found) == limit else None}


@router.delete("/gallery/{id}", status_code=204)
async def delete_job(id: str, served: Served) -> None:
    """Forget a job that is over, and remove its files."""
    record = _job(served, id)
    if not record.is_over:
        raise Refusal(409, "the job is not over; cancel it first")
    served.delete(record)


# Files


@router.post("/files", status_code=201)
async def upload(file: list[UploadFile], served: Served) -> Json:
    """Keep pictures, sounds and films, for requests to name."""
    paths = [await asyncio.to_thread(served.shelf.add, await one.read()) for one in file]
    return {"files": describe_files(iter(paths))}


@router.get("/files/{name}", response_class=FileResponse)
@router.head("/files/{name}", include_in_schema=False)
async def download(name: str, request: Request, served: Served, download: str | None = None) -> Response:
    """Return a result or an upload; parts of it by Range."""
    path = served.shelf.find(name)
    if path is None:
        raise Refusal(404, "there is no such file")
    response = FileResponse(
        path,
        stat_result=path.stat(),
        media_type=media_type(path),
        headers={"Cache-Control": FOREVER},
        filename=None if download is None else name,
    )
    if request.headers.get("if-none-match") == response.headers["etag"]:
        return Response(status_code=304, headers={"ETag": response.headers["etag"], "Cache-Control": FOREVER})
    return response


class FileBody(BaseModel):
    """A file by its name here, or its content as a data URL."""

    file: str


@router.post("/inspect")
async def inspect(named: FileBody, served: Served) -> Json:
    """Tell what made a picture, a film or a sound: ours, or another program's."""

    def read() -> Json:
        path = served.shelf.add(content_of(named.file)) if named.file.startswith(DATA_URL) else None
        if (found := path or served.shelf.find(named.file)) is None:
            raise Refusal(404, "there is no such file")
        with resolving(served.settings.resolver()):
            record = read_record(found)
            request = record.request.to_record()
        fields = {"kind": record.request.kind, "model": record.model, "request": request, "notes": list(record.notes)}
        return fields | {"film": None if record.film is None else record.film.to_record()}

    return await asyncio.to_thread(read)


# Models, and what is known


@router.get("/info")
async def info(served: Served) -> Json:
    """Tell what this server is and allows."""
    settings = served.settings
    return {
        "version": version("reverie"),
        "models": _models(served),
        "defaults": {"pictures": settings.default("text_to_image"), "music": settings.default("music")},
        "limits": vars(settings.limits),
        "formats": FORMATS,
        "styles": [] if settings.styles is None else list(read_styles(settings.styles)),
        "index": settings.index is not None,
    }


@router.get("/models")
async def models(served: Served) -> Json:
    """List the models that requests may name."""
    return {"models": _models(served)}


def _models(served: Dispatcher) -> list[Json]:
    settings = served.settings
    defaults = (settings.default("text_to_image"), settings.default("music"))
    return [
        {"name": name, "bundled": name in BUNDLED, "default": name in defaults, "loaded": name in served.loaded}
        | {"varies": name in OWNERS or (place / SEES).is_dir()}
        | describe_model(place)
        for name, place in settings.places().items()
    ]


@lru_cache(maxsize=256)
def describe_model(place: Path) -> Json:
    """Return what a model makes, at which size in pixels, and what is recommended; None where nothing says so."""
    found = {name: _read(locate_part(place, file)) for name, file in DESCRIPTIONS.items()}
    makes = "music" if (place / SPECTROGRAM).is_file() else "pictures"
    side, vae = found["unet"].get("sample_size"), found["vae"]
    drawn = makes == "pictures" and isinstance(side, int) and "block_out_channels" in vae
    size = side * vae.get("patch_size", 1) * 2 ** (len(vae["block_out_channels"]) - 1) if drawn else None
    family = few_steps(place.stem)
    own = found["recommended"] or ({} if family is None else family.fields())
    recommended = {name: own.get(name) for name in ("steps", "guidance", "sampler", "schedule")}
    return {"makes": makes, "size": size} | recommended


SEES = "image_encoder"  # the folder of what pictures that a model varies are seen by
DESCRIPTIONS = {"unet": "unet/config.json", "vae": "vae/config.json", "recommended": "recommended.json"}


def _read(file: Path) -> Json:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@router.post("/models/{name:path}/load")
async def load_model(name: str, request: Request, served: Served) -> Json:
    """Load a model, in the queue's order, and answer once it is there."""
    known = served.settings.model_for("", name)
    return await answer(request, "load", {"model": known}, known)


@router.post("/models/{name:path}/unload")
async def unload_model(name: str, served: Served) -> Json:
    """Let go of a model."""
    known = served.settings.model_for("", name)
    served.unload(known)
    return {"name": known}


@router.get("/adapters")
async def adapters(served: Served) -> Json:
    """List the files of LoRAs, embeddings, ControlNets and upscalers that requests may name."""
    return {f"{what}s": names_in(folders) for what, folders in served.settings.adapters().items()}


def machine_memory() -> tuple[int, int]:
    """Return how many bytes of memory this machine has, and how many are free; 0 where the system does not say."""
    try:
        page, pages, free = (os.sysconf(f"SC_{name}") for name in ("PAGE_SIZE", "PHYS_PAGES", "AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return 0, 0
    return page * pages, page * free


def names_in(folders: tuple[Path, ...]) -> list[str]:
    """Return the names of what is in folders."""
    return sorted({path.name for folder in folders for path in folder.iterdir() if not path.name.startswith(".")})


@router.get("/samplers")
async def samplers() -> Json:
    """List samplers and spacings of noise levels, with the names that other programs give them."""
    fields = SampledRequest.model_fields
    return {
        "samplers": [{"name": name, "label": one.label, "others": one.others} for name, one in RECORDS.items()],
        "schedules": [{"name": name, "label": schedule_label(name)} for name in SPACINGS],
        "defaults": {name: fields[name].default for name in ("sampler", "schedule", "steps")},
    }


@router.get("/concepts")
async def concepts(served: Served, model: str = BUNDLED_NAME) -> Json:
    """List what a model was taught, in English and Chinese, where it says so."""
    place = served.settings.places().get(served.settings.model_for("text_to_image", model), Path())
    known = locate_part(place, "concepts.json")
    return {"concepts": json.loads(known.read_text(encoding="utf-8")) if known.is_file() else []}


# Questions to CLIP


def _answer_questions(question: type[Question]) -> None:
    """Add a route that answers a kind of question; its fields are the question's, pictures by name or content."""
    schema = {"type": "object", "additionalProperties": False, **fields_schema(question)}
    described = {"requestBody": {"content": {"application/json": {"schema": schema}}}}

    @router.post(f"/{question.kind}", name=question.kind, description=question.__doc__, openapi_extra=described)
    async def ask(asked: Json, request: Request) -> Json:
        return await answer(request, question.kind, asked)


for _question in (Search, Comparison, Classification, Embedding):
    _answer_questions(_question)
