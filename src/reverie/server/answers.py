"""Answers: what routes of every protocol share, from a request of HTTP to a finished job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection, Request

from reverie.server.dispatcher import Dispatcher
from reverie.server.guard import Refusal
from reverie.server.store import JobRecord
from reverie.server.submissions import Submission

GONE = 499  # nginx's status for a client that did not wait


def dispatcher_of(connection: HTTPConnection) -> Dispatcher:
    """Return the dispatcher of the application that a request came to."""
    return connection.app.state.dispatcher


Served = Annotated[Dispatcher, Depends(dispatcher_of)]
"""A route's parameter: the dispatcher."""


def client_of(connection: HTTPConnection) -> str:
    """Return who asks, for the queue to be fair."""
    return connection.state.client


async def finish(request: Request, body: Mapping[str, Any] | Submission) -> JobRecord:
    """Submit a job and return it done; cancel it where the client goes away. The body of the request must be read.

    Raises Refusal, with the job's own error, where it fails.
    """
    (record,) = await attend(request, [body])
    if record.state != "done":
        raise failure(record)
    return record


async def attend(request: Request, bodies: Iterable[Mapping[str, Any] | Submission]) -> list[JobRecord]:
    """Submit jobs and return them over; cancel them where the client goes away, or one of them is not taken."""
    dispatcher = dispatcher_of(request)
    records: list[JobRecord] = []
    gone: asyncio.Future[Any] = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        for body in bodies:
            records.append(await dispatcher.submit(body, client_of(request)))
        over: asyncio.Future[Any] = asyncio.gather(*map(dispatcher.wait, records))
        await asyncio.wait({over, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not over.done():
            over.cancel()
            raise Refusal(GONE, "the client went away")
        return over.result()
    finally:
        gone.cancel()
        for record in records:
            dispatcher.abandon(record)


def failure(record: JobRecord) -> Refusal:
    """Return the answer that a job's failure is to a client that waits for it."""
    if record.error is None:
        return Refusal(503, "the job was cancelled" if record.is_over else "the server is closing; the job is kept")
    return Refusal(record.status or 500, record.error, param=record.field)


async def answer(request: Request, kind: str, fields: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
    """Return the answer to a question, of which nothing is kept."""
    submission = Submission.of({"kind": kind, "request": fields, "model": model, "options": {"keep": False}})
    record = await finish(request, submission)
    dispatcher_of(request).delete(record)
    return record.result or {}


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
