"""Live drawing: the newest canvas and prompt drawn again and again, one at a time, over a WebSocket."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from reverie.errors import ReverieError
from reverie.requests.references import data_url
from reverie.server.answers import client_of, dispatcher_of
from reverie.server.api import receive_json
from reverie.server.dispatcher import Dispatcher
from reverie.server.shelf import media_type
from reverie.server.store import JobRecord
from reverie.server.submissions import Submission

ASKED = ("kind", "request", "model", "style", "dynamic")  # of a message, beside its number
OPTIONS = {"keep": False, "previews": 0, "formats": "jpg"}  # JPEG is written and read soonest

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
    record = await served.submit(_read(message), client_of(socket))
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


def _read(message: dict[str, Any]) -> Submission:
    """Return what to draw: the body of a job, of which nothing is kept."""
    return Submission.of({name: message[name] for name in ASKED if name in message} | {"options": OPTIONS})
