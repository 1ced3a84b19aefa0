"""Live drawing: the newest canvas and prompt drawn again and again, one at a time, over a WebSocket."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from reverie.errors import ReverieError
from reverie.requests.pictures import ImageToImage
from reverie.requests.references import Resolver, resolving
from reverie.server.answers import client_of, dispatcher_of
from reverie.server.api import receive_json
from reverie.server.dispatcher import Dispatcher
from reverie.server.shelf import data_url, media_type
from reverie.server.store import JobRecord
from reverie.server.submissions import Submission

FORMAT = "jpg"  # which is written and read soonest; as WebP a picture of 256 pixels took 6 ms more

router = APIRouter(prefix="/api")


@router.websocket("/live")
async def draw_live(socket: WebSocket) -> None:
    """Draw what was sent last, as soon as the drawing before is done; what came in between is passed over.

    A message that is `urgent` breaks off the drawing at hand, whose picture then does not come.
    """
    await socket.accept()
    newest: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1)
    at_hand: list[JobRecord] = []
    drawing = asyncio.create_task(_draw_all(socket, newest, at_hand))
    try:
        while True:
            message = await receive_json(socket)
            if newest.full():
                newest.get_nowait()
            newest.put_nowait(message)
            for record in at_hand if message.get("urgent") else ():
                dispatcher_of(socket).cancel(record)
    except WebSocketDisconnect:
        pass
    finally:
        drawing.cancel()


async def _draw_all(socket: WebSocket, newest: asyncio.Queue[dict[str, Any]], at_hand: list[JobRecord]) -> None:
    while True:
        message = await newest.get()
        number = message.get("number")
        try:
            await _draw(socket, dispatcher_of(socket), message, number, at_hand)
        except ReverieError as error:
            answer = {"type": "error", "number": number, "message": str(error), "param": error.field}
            await socket.send_json(answer)


async def _draw(
    socket: WebSocket, served: Dispatcher, message: dict[str, Any], number: object, at_hand: list[JobRecord]
) -> None:
    start = time.monotonic()
    submission = await asyncio.to_thread(_read, message, served.settings.resolver())
    record = await served.submit(submission, client_of(socket))
    at_hand.append(record)
    try:
        async for event in served.watch(record.id):
            if event["type"] == "progress":
                progress = {name: event[name] for name in ("done", "total")}
                await socket.send_json({"type": "progress", "number": number, **progress})
        if record.error is not None:
            raise ReverieError(record.error, field=record.field)
        for path in served.paths(record):
            picture = {"type": "picture", "number": number, "image": data_url(path.read_bytes(), media_type(path))}
            await socket.send_json(picture | {"seconds": round(time.monotonic() - start, 3), "notes": record.notes})
    finally:
        at_hand.remove(record)
        served.cancel(record)
        if record.is_over:
            served.delete(record)


def _read(message: dict[str, Any], resolver: Resolver) -> Submission:
    """Return what to draw; the request's own pictures tell its kind where the message does not."""
    request = message.get("request")
    if not isinstance(request, dict):
        raise ReverieError('nothing to draw; send {"number": 1, "request": {"prompt": "a bear"}}')
    kind = message.get("kind")
    if kind is None:
        with resolving(resolver):
            kind = _kind(request.get("init"), request.get("mask"))
    options = {"keep": False, "previews": 0, "formats": [FORMAT]}
    given: dict[str, Any] = {name: message[name] for name in ("model", "style", "dynamic") if name in message}
    return Submission.of({**given, "kind": kind, "request": request, "options": options})


def _kind(init: object, mask: object) -> str:
    if init is None:
        return "text_to_image"
    return "inpaint" if mask is not None or ImageToImage.of({"init": init}).init.transparent else "image_to_image"
