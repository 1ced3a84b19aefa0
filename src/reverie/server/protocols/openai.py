"""OpenAI's images API below /v1, as its Python SDK speaks it: generations, edits, variations, models, streams.

Beside OpenAI's own fields it takes negative_prompt, steps or num_inference_steps, guidance_scale, seed, sampler,
schedule, loras and strength. `quality` is a number of steps; what cannot be honoured is refused.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from reverie.errors import ReverieError
from reverie.media.pictures import decode, encode, exif_texts, read_texts, to_rgb
from reverie.requests.records import read_record
from reverie.requests.references import data_url
from reverie.server.answers import Served, client_of, dispatcher_of, failure, finish
from reverie.server.api import server_sent_event
from reverie.server.dispatcher import Dispatcher
from reverie.server.guard import Refusal, error_body
from reverie.server.shelf import FILE_URL
from reverie.server.store import JobRecord

router = APIRouter(prefix="/v1")
STREAMED: dict[int | str, Any] = {200: {"content": {"text/event-stream": {}}}}  # with `stream`

QUALITY_STEPS = {"low": 12, "medium": 20, "standard": 20, "auto": 20, "high": 40, "hd": 40}
HOSTED = re.compile(r"(dall-e|gpt-image|chatgpt-image)-[\w.-]+")  # programs name these without a choice: the default
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
FAITHFUL, FREE = 0.5, 0.75  # strengths of an edit without a mask, by input_fidelity
VARIED = 0.6  # strength of a variation
MOST_PICTURES = 10
USAGE: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE |= {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}


class ImagesRequest(BaseModel):
    """What all of OpenAI's routes for pictures take, and our fields beside it."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = ""
    model: str | None = None
    n: int | None = Field(default=1, ge=1, le=MOST_PICTURES)
    size: str | None = Field(default="auto", pattern=r"^(auto|\d{1,5}x\d{1,5})$")
    quality: Literal["low", "medium", "standard", "auto", "high", "hd"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    response_format: Literal["url", "b64_json"] | None = None
    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid", "natural"] | None = None
    user: str | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    input_fidelity: Literal["low", "high"] | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    loras: list[str] | None = None
    strength: float | None = None

    @property
    def format(self) -> str:
        """Return the format of the answer."""
        return self.output_format or "png"

    def submission(self, kind: str, **request: Any) -> dict[str, Any]:
        """Return the job's body."""
        if self.background == "transparent":
            raise ReverieError("this server draws opaque pictures; ask for `background` opaque", field="background")
        steps = self.steps or self.num_inference_steps or (QUALITY_STEPS[self.quality] if self.quality else None)
        width, height = (None, None) if self.size in (None, "auto") else map(int, str(self.size).split("x"))
        request |= {"prompt": self.prompt, "count": self.n or 1, "width": width, "height": height, "steps": steps}
        request |= {"negative": self.negative_prompt, "guidance": self.guidance_scale, "seed": self.seed}
        request |= {name: getattr(self, name) for name in ("sampler", "schedule", "loras")}
        given = {name: value for name, value in request.items() if value is not None}
        model = None if self.model is None or HOSTED.fullmatch(self.model) else self.model
        options = {"previews": 1 if self.stream and self.partial_images else 0}
        return {"kind": kind, "request": given, "model": model, "options": options}


@router.post("/images/generations", response_model=None, responses=STREAMED)
async def generate(asked: ImagesRequest, request: Request) -> dict[str, Any] | Response:
    """Draw pictures of a prompt."""
    return await _respond(request, asked, asked.submission("text_to_image"), "image_generation")


@router.post("/images/edits", response_model=None, responses=STREAMED)
async def edit(request: Request) -> dict[str, Any] | Response:
    """Draw a picture anew, or the part of it that the mask, or the picture itself, leaves transparent."""
    asked, files = await _read_form(request)
    image, mask = _only(files.get("image", [])), files.get("mask", [None])[0]
    picture = await asyncio.to_thread(decode, image)
    if mask is not None:
        painted = await asyncio.to_thread(_mask_of, mask)
        body = asked.submission("inpaint", init=_url(image), mask=_url(painted), strength=asked.strength or 1.0)
    elif picture.mode == "RGBA":
        body = asked.submission("inpaint", init=_url(image), strength=asked.strength or 1.0)
    else:
        strength = asked.strength or (FAITHFUL if asked.input_fidelity == "high" else FREE)
        body = asked.submission("image_to_image", init=_url(image), strength=strength)
    return await _respond(request, asked, body, "image_edit")


@router.post("/images/variations", response_model=None)
async def vary(request: Request) -> dict[str, Any] | Response:
    """Draw pictures like one; where it says what its prompt was, towards that."""
    asked, files = await _read_form(request)
    image = _only(files.get("image", []))
    if not asked.prompt:
        asked = asked.model_copy(update={"prompt": await asyncio.to_thread(_prompt_of, image)})
    body = asked.submission("image_to_image", init=_url(image), strength=asked.strength or VARIED)
    return await _respond(request, asked, body, "image_edit")


@router.get("/models")
async def models(served: Served) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": [_model(name) for name in served.settings.places()]}


@router.get("/models/{name:path}")
async def model(name: str, served: Served) -> dict[str, Any]:
    """Tell of one model."""
    if name not in served.settings.places():
        raise Refusal(404, f"there is no model '{name}' here", param="model")
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "reverie"}


async def _read_form(request: Request) -> tuple[ImagesRequest, dict[str, list[bytes]]]:
    """Read a multipart form: its fields checked, and its files by field, image[] as image."""
    fields, files = dict[str, Any](), dict[str, list[bytes]]()
    async with request.form(max_files=20, max_fields=50) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            elif name.removesuffix("[]") == "loras":
                fields.setdefault("loras", []).append(value)
            else:
                fields[name] = value
    try:
        return ImagesRequest.model_validate(fields), files
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None


def _only(images: list[bytes]) -> bytes:
    if len(images) != 1:
        raise ReverieError(f"{len(images)} pictures are given; send one as `image`", field="image")
    return images[0]


def _mask_of(mask: bytes) -> bytes:
    """Turn OpenAI's mask, whose transparent part is edited, into one that is white there."""
    picture = decode(mask, "the mask")
    if picture.mode != "RGBA":
        raise ReverieError("the mask has no transparent part; what is to be edited is transparent in it", field="mask")
    return encode(ImageOps.invert(picture.getchannel("A")))


def _prompt_of(image: bytes) -> str:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return " ".join(read_record(picture).request.prompts[:1])
    except (ReverieError, OSError):
        return ""


def _url(data: bytes) -> str:
    return data_url(data, "image/png")


async def _respond(
    request: Request, asked: ImagesRequest, body: dict[str, Any], kind: str
) -> dict[str, Any] | Response:
    if not asked.stream:
        record = await finish(request, body)
        return await asyncio.to_thread(_answer, dispatcher_of(request), record, asked, str(request.base_url))
    served = dispatcher_of(request)
    record = await served.submit(body, client_of(request))
    return StreamingResponse(_stream(served, record, asked, kind), media_type="text/event-stream")


def _answer(served: Dispatcher, record: JobRecord, asked: ImagesRequest, base: str) -> dict[str, Any]:
    """Return OpenAI's answer for a job that is done."""
    paths = served.paths(record)
    data = [
        {"url": f"{base.rstrip('/')}{FILE_URL}{path.name}"}
        if asked.response_format == "url"
        else {"b64_json": _encode(path, asked)}
        for path in paths
    ]
    return {"created": int(time.time()), "data": data, **_details(record, asked), "usage": USAGE}


def _details(record: JobRecord, asked: ImagesRequest) -> dict[str, Any]:
    width, height = ((record.result or {}).get("sizes") or [(0, 0)])[0]
    details = {"background": "opaque", "output_format": asked.format, "size": f"{width}x{height}"}
    return details | {"quality": asked.quality or "auto"}


def _encode(path: Path, asked: ImagesRequest) -> str:
    """Return a result in the format and compression of the answer, with the texts that it carries."""
    if asked.format == "png":
        return base64.b64encode(path.read_bytes()).decode()
    with Image.open(path) as picture:
        return _encode_picture(picture, asked)


def _encode_picture(picture: Image.Image, asked: ImagesRequest) -> str:
    quality = 95 if asked.output_compression is None else asked.output_compression
    exif = exif_texts(read_texts(picture))
    return base64.b64encode(encode(to_rgb(picture), asked.format.upper(), quality=quality, exif=exif)).decode()


async def _stream(served: Dispatcher, record: JobRecord, asked: ImagesRequest, kind: str) -> AsyncIterator[str]:
    """Yield OpenAI's events: partial pictures spread evenly over the steps, and every finished one."""
    partial, wanted = 0, asked.partial_images or 0
    details = {"created_at": int(time.time()), **_details(record, asked)}
    try:
        async for event in served.watch(record.id):
            share = event.get("done", 0) / event.get("total", 1)
            if event["type"] == "preview" and partial < wanted and share >= (partial + 1) / (wanted + 1):
                picture, size = await asyncio.to_thread(_partial, event["image"], asked)
                more = {"b64_json": picture, "partial_image_index": partial, "size": size}
                yield server_sent_event(f"{kind}.partial_image", {"type": f"{kind}.partial_image", **details, **more})
                partial += 1
        record = served.get(record.id) or record
        if record.state != "done":
            refusal = failure(record)
            yield server_sent_event("error", {"type": "error", **error_body(refusal.detail, refusal.param)})
            return
        for path in served.paths(record):
            more = {"b64_json": await asyncio.to_thread(_encode, path, asked), "usage": USAGE}
            event = {"type": f"{kind}.completed", **details, **more, **_details(record, asked)}
            yield server_sent_event(event["type"], event)
    finally:
        served.abandon(record)


def _partial(image: str, asked: ImagesRequest) -> tuple[str, str]:
    """Return a preview, a data URL, in the answer's format, and its size."""
    with Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))) as picture:
        return _encode_picture(picture, asked), f"{picture.width}x{picture.height}"
