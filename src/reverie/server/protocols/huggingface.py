"""Hugging Face's inference API, as `InferenceClient(model="http://...")` asks: at the address itself, or with a model.

What is asked follows from what is sent: text with `parameters` is drawn, a picture is drawn anew, or classified where
there are `candidate_labels`, and text alone is embedded. What cannot be honoured is refused.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request, Response

from reverie.errors import ReverieError
from reverie.requests.references import data_url
from reverie.server.answers import answer, dispatcher_of, finish
from reverie.server.guard import Refusal
from reverie.server.shelf import json_object

router = APIRouter()
Json = dict[str, Any]

# Ours by the API's names; what is not here is refused.
SAME = {"negative_prompt": "negative", "num_inference_steps": "steps", "guidance_scale": "guidance"}
SAME |= {"scheduler": "sampler"} | {name: name for name in ("prompt", "width", "height", "seed", "strength", "loras")}
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")  # how their files begin
FITTING = {"normalize": True, "truncate": True, "encoding_format": "float"}  # what an embedding may be asked to be


@router.post("/", response_model=None)
@router.post("/models/{model:path}", response_model=None)
async def infer(request: Request, model: str | None = None) -> Response | list[Any]:
    """Draw, draw anew, classify or embed."""
    body = _read(await request.body())
    inputs, parameters = body.pop("inputs", ""), body.pop("parameters", None)
    picture = _picture(inputs)
    if not isinstance(parameters or {}, dict):
        raise ReverieError("`parameters` is a JSON object", field="parameters")
    if picture is not None and "candidate_labels" in (parameters or {}):
        return await _classify(request, picture, parameters)
    if picture is None and parameters is None and "image/" not in request.headers.get("accept", ""):
        return await _embed(request, inputs, body)
    fields = _fields({**body, **(parameters or {})})
    if picture is None:
        job = {"kind": "text_to_image", "request": fields | {"prompt": inputs}}
    else:
        job = {"kind": "image_to_image", "request": fields | {"init": picture}}
    record = await finish(request, job | {"model": model})
    (path,) = dispatcher_of(request).paths(record)
    return Response(await asyncio.to_thread(path.read_bytes), media_type="image/png")


def _read(data: bytes) -> Json:
    """Return the JSON of a request, or as `inputs` the picture that its body is."""
    if data.startswith(PICTURES):
        return {"inputs": base64.b64encode(data).decode()}
    if (body := json_object(data)) is None:
        raise Refusal(400, "send a JSON object with `inputs`, or a picture")
    return body


def _picture(inputs: object) -> str | None:
    """Return as a data URL the picture that base64 holds, or None for other text."""
    try:
        data = base64.b64decode(inputs, validate=True) if isinstance(inputs, str) else b""
    except ValueError:
        return None
    return data_url(data, "image/png") if data.startswith(PICTURES) else None


def _fields(parameters: Json) -> Json:
    """Return the request's fields. Raises ReverieError for a parameter that is not honoured."""
    size = parameters.pop("target_size", None) or {}
    given = {name: one for name, one in {**parameters, **dict(size)}.items() if one is not None}
    for name in given:
        if name not in SAME:
            raise ReverieError(f"unknown parameter '{name}'; choose from {', '.join(SAME)}, target_size", field=name)
    return {SAME[name]: value for name, value in given.items()}


async def _classify(request: Request, picture: str, parameters: Json) -> list[Json]:
    labels, template = parameters["candidate_labels"], parameters.get("hypothesis_template")
    fields = {"pictures": [picture], "labels": labels, "top": 100} | ({"templates": [template]} if template else {})
    found = await answer(request, "classify", fields)
    return [{"label": one["label"], "score": one["probability"]} for one in found["guesses"][0]]


async def _embed(request: Request, inputs: object, options: Json) -> list[Any]:
    """Return the normalised CLIP embedding of each text."""
    for name, value in options.items():
        if value is not None and FITTING.get(name) != value:
            raise ReverieError(f"embeddings cannot be had with {name} {value!r}; leave it out", field=name)
    found = await answer(request, "embed", {"texts": inputs if isinstance(inputs, list) else [inputs]})
    return list(found["vectors"])
