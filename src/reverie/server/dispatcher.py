"""The dispatcher: takes submissions, queues them fairly, gives them to workers, and tells who listens.

All of it runs in the event loop of the web process; only what workers say arrives from threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.requests.references import data_url
from reverie.server.cluster import RemoteWorker
from reverie.server.settings import Settings
from reverie.server.shelf import Shelf, describe_files
from reverie.server.store import FINAL, JobRecord, JobStore, State
from reverie.server.submissions import Submission
from reverie.server.worker import Said, Task, Worker

ATTEMPTS = 3  # how often a job may be begun whose worker, or server, dies
PATIENCE = 15.0  # seconds until a worker is killed whose task does not stop
FORGET = 3600.0  # seconds for which jobs that are not kept are known after their end
RESPAWN = 1.0  # seconds before a worker that died is replaced
BACKLOG = 256  # events that a listener may be behind; then progress and previews are left out
SMOOTHING = 0.2  # of the mean of the jobs' seconds, for Retry-After
ALL = "*"

log = logging.getLogger("reverie.server")
Event = dict[str, Any]
AnyWorker = Worker | RemoteWorker
Hire = Callable[[Settings, Callable[[Any, Said | None], None]], AnyWorker]
"""(settings, what hears all that it says) -> a worker: a process of this machine, or an actor of a cluster."""


class QueueFull(ReverieError):
    """The queue holds as many jobs as it may; `retry` says after how many seconds to ask again."""

    def __init__(self, message: str, retry: int) -> None:
        super().__init__(message, hint=f"ask again in {retry} s")
        self.retry = retry


class FairQueue:
    """Jobs in line: the clients take turns, and each client's own jobs keep their order."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[str]] = OrderedDict()  # in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def count(self, client: str) -> int:
        """Return how many jobs of a client wait."""
        return len(self._lines.get(client, ()))

    def add(self, client: str, job: str) -> None:
        """Put a job at the end of its client's line."""
        self._lines.setdefault(client, deque()).append(job)

    def take(self) -> str:
        """Return the next job; its client's next turn comes after all others'."""
        client, line = self._lines.popitem(last=False)
        job = line.popleft()
        if line:
            self._lines[client] = line
        return job

    def remove(self, client: str, job: str) -> bool:
        """Take a job out, and tell whether it was there."""
        line = self._lines.get(client, deque())
        if job not in line:
            return False
        line.remove(job)
        if not line:
            del self._lines[client]
        return True

    def order(self) -> Iterator[str]:
        """Yield the jobs in the order in which they will be taken."""
        lines = [deque(line) for line in self._lines.values()]
        while lines:
            for line in lines:
                yield line.popleft()
            lines = [line for line in lines if line]


class Dispatcher:
    """The jobs of a server, from submission to result."""

    def __init__(self, settings: Settings, store: JobStore, hire: Hire = Worker) -> None:
        self.settings, self._take_on = settings, hire
        self.shelf = Shelf(settings)
        self.store = store
        self.waiting = FairQueue()
        self.active: dict[str, JobRecord] = {}  # queued and running, and what is not kept until it is forgotten
        self.workers: list[AnyWorker] = []
        self.finished: dict[tuple[str, State], int] = {}
        self.closing = False
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[str, set[asyncio.Queue[Event | None]]] = {}  # None ends a stream
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._seconds = 5.0
        for record in self.store.pending():
            self._resume(record)
        for _ in range(settings.workers):
            self._hire()
        self._tidy()

    def announce_close(self) -> None:
        """Let streams of events end; may be called from a signal's handler."""
        self._loop.call_soon_threadsafe(self._end_streams)

    async def close(self) -> None:
        """End the workers; what they were doing is queued when the server starts again."""
        self._end_streams()
        for timer in self._timers.values():
            timer.cancel()
        workers, self.workers = self.workers, []
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in workers))
        self.store.close()

    # What protocols do

    async def submit(self, body: Mapping[str, Any] | Submission, client: str, id: str | None = None) -> JobRecord:
        """Queue what is asked for, under a new id; once this returns it is not lost. Raises ReverieError, QueueFull."""
        self._check_room(client)
        submission = await asyncio.to_thread(self._check, body)  # decodes pictures
        self._check_room(client)
        if id is not None and self.get(id) is not None:
            raise ReverieError(f"there is a job of the id '{id}' already", field="id")
        record = JobRecord.new(submission, client, id)
        if submission.options.keep:
            self.store.add(record)
        self._enqueue(record)
        return record

    def get(self, id: str) -> JobRecord | None:
        """Return a job."""
        return self.active.get(id) or self.store.get(id)

    def cancel(self, record: JobRecord) -> None:
        """Stop a job that is not over: at once where it is queued, between two steps where it runs."""
        if record.state == "queued" and self.waiting.remove(record.client, record.id):
            self._end(record, "cancelled")
            self._tell_positions()
        elif record.state == "running":
            for worker in self._workers_of(record):
                worker.cancel()
            self._timers.pop(record.id).cancel()
            self._timers[record.id] = self._loop.call_later(PATIENCE, self._kill, record)

    def abandon(self, record: JobRecord) -> None:
        """Stop a job that is not over, as nobody waits for it any more; a server that closes keeps it."""
        if not self.closing:
            self.cancel(record)

    def delete(self, record: JobRecord) -> None:
        """Forget a job that is over, and remove its files."""
        for path in self.paths(record):
            path.unlink(missing_ok=True)
        self.active.pop(record.id, None)
        self.store.delete(record.id)

    def paths(self, record: JobRecord) -> list[Path]:
        """Return the files that a job made."""
        return [self.settings.outputs / name for name in record.files]

    def describe(self, record: JobRecord) -> dict[str, Any]:
        """Return what clients are told of a job."""
        return record.describe(self.settings.outputs, self.position(record))

    def position(self, record: JobRecord) -> int | None:
        """Return how many jobs are taken before a queued one."""
        if record.state != "queued":
            return None
        return next((place for place, id in enumerate(self.waiting.order()) if id == record.id), None)

    async def wait(self, record: JobRecord) -> JobRecord:
        """Return a job once it is over."""
        async for _ in self.watch(record.id):
            pass
        return self.active.get(record.id) or self.store.get(record.id) or record

    async def watch(self, id: str) -> AsyncIterator[Event]:
        """Yield what happens to a job, or to `ALL`, from its present state until it is over or the server closes."""
        with self._listen(id) as events:
            if (record := self.get(id)) is not None:
                yield {"type": "state", "id": id, "job": self.describe(record)}
                if record.is_over:
                    return
            while not self.closing and (event := await events.get()) is not None:
                yield event
                if id != ALL and event["type"] == "state" and event["job"]["state"] in FINAL:
                    return

    def unload(self, model: str) -> None:
        """Let every worker let go of a model, after the job at hand."""
        for worker in self.workers:
            worker.unload(model)

    @property
    def loaded(self) -> set[str]:
        """Return the names of the models that are in memory."""
        return {name for worker in self.workers for name in worker.models}

    # The queue

    def _check(self, body: Mapping[str, Any] | Submission) -> Submission:
        given = body if isinstance(body, Submission) else Submission.of(body)
        filled = given.fill(self.settings)
        filled.job("check", self.settings)
        return filled

    def _check_room(self, client: str) -> None:
        limits = self.settings.limits
        length = len(self.waiting)
        retry = min(600, max(1, round(self._seconds * max(1, length) / max(1, len(self.workers)))))
        if length >= limits.queue:
            raise QueueFull(f"the queue is full: {length} jobs wait", retry)
        if (own := self.waiting.count(client)) >= limits.queue * limits.share:
            raise QueueFull(f"{own} of your jobs wait, and more are not taken", retry)

    def _resume(self, record: JobRecord) -> None:
        """Queue a job that an earlier process left."""
        if record.attempts >= ATTEMPTS:
            self._end(record, "failed", f"given up after {record.attempts} attempts that did not end")
            return
        record.state, record.started, record.files, record.notes = "queued", None, [], []
        self._enqueue(record)

    def _enqueue(self, record: JobRecord) -> None:
        self.active[record.id] = record
        self.waiting.add(record.client, record.id)
        self._tell_state(record)
        self._assign()

    def _assign(self) -> None:
        """Give waiting jobs to idle workers, rather to those that hold the model."""
        while len(self.waiting) and (idle := [worker for worker in self.workers if worker.task is None]):
            record = self.active[self.waiting.take()]
            worker = max(idle, key=lambda one: record.submission.model in one.models)
            record.state, record.started, record.attempts = "running", time.time(), record.attempts + 1
            self._save(record)
            worker.start(Task(record.id, record.submission))
            self._timers[record.id] = self._loop.call_later(self.settings.limits.seconds, self._overdue, record)
            self._tell_state(record)
            self._tell_positions()

    def _overdue(self, record: JobRecord) -> None:
        record.error = f"stopped after {self.settings.limits.seconds:g} s, which is what a job may take here"
        self.cancel(record)

    def _kill(self, record: JobRecord) -> None:
        for worker in self._workers_of(record):
            worker.kill()
        self._end(record, "failed" if record.error else "cancelled", record.error)

    # The workers

    def _workers_of(self, record: JobRecord) -> list[AnyWorker]:
        return [worker for worker in self.workers if worker.task == record.id]

    def _hire(self) -> None:
        if not self.closing:
            self.workers.append(self._take_on(self.settings, self._hear))
            self._assign()

    def _hear(self, worker: AnyWorker, said: Said | None) -> None:
        """Pass on, from a worker's thread, what it says."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heed, worker, said)

    def _heed(self, worker: AnyWorker, said: Said | None) -> None:
        if worker not in self.workers:
            return
        if said is None:
            self._replace(worker)
        elif said.what == "models":
            worker.models = said.value
        elif record := self._running(worker):
            self._follow(worker, record, said)

    def _running(self, worker: AnyWorker) -> JobRecord | None:
        """Return the job that a worker does, where that was not ended already."""
        record = self.active.get(worker.task or "")
        return record if record is not None and record.state == "running" else None

    def _replace(self, worker: AnyWorker) -> None:
        """Do without a worker that died: its job is queued again, or fails where that happened before."""
        self.workers.remove(worker)
        log.error("a worker ended unexpectedly")
        self._loop.call_later(RESPAWN, self._hire)
        if record := self._running(worker):
            self._timers.pop(record.id).cancel()
            if record.attempts >= ATTEMPTS - 1:
                self._end(record, "failed", "its worker ended unexpectedly, perhaps for want of memory")
            else:
                self._resume(record)

    def _follow(self, worker: AnyWorker, record: JobRecord, said: Said) -> None:
        """Take note of what a worker says of its job, and tell listeners."""
        event = {"type": said.what, "id": record.id}
        if said.what == "progress":
            record.progress = said.value
            self._tell(record, event | said.value)
        elif said.what == "preview":
            record.preview = data_url(said.value, "image/jpeg")
            self._tell(record, event | {"image": record.preview} | (record.progress or {}))
        elif said.what == "note":
            record.notes.append(said.value)
            self._tell(record, event | {"text": said.value})
        elif said.what == "file":
            record.files.append(said.value)
            (file,) = describe_files(iter([self.settings.outputs / said.value]))
            self._tell(record, event | {"file": file})
        else:
            worker.task = None
            if said.what == "done":
                record.files, record.result = said.value.pop("files"), said.value
                self._seconds += SMOOTHING * (time.time() - (record.started or 0.0) - self._seconds)
                self._end(record, "done")
            elif said.what == "failed":
                self._end(record, "failed", *said.value)
            else:
                self._end(record, "failed" if record.error else "cancelled", record.error)
            self._assign()

    def _end(
        self, record: JobRecord, state: State, error: str | None = None, field: str | None = None, status: int = 500
    ) -> None:
        if timer := self._timers.pop(record.id, None):
            timer.cancel()
        record.state, record.finished, record.error, record.field = state, time.time(), error, field
        record.status = None if error is None else status
        key = record.submission.kind, state
        self.finished[key] = self.finished.get(key, 0) + 1
        self._save(record)
        self._tell_state(record)
        record.preview = None
        if record.submission.options.keep:
            self.active.pop(record.id, None)
        else:
            self._loop.call_later(FORGET, self.delete, record)

    def _save(self, record: JobRecord) -> None:
        if record.submission.options.keep:
            self.store.update(record)

    def _tidy(self) -> None:
        """Remove uploads that nothing needs, now and every hour."""
        used = [record.submission.model_dump_json() for record in self.active.values()]
        self.shelf.sweep(lambda name: self.store.names(name) or any(name in text for text in used))
        self._loop.call_later(FORGET, self._tidy)

    # The listeners

    @contextmanager
    def _listen(self, id: str) -> Iterator[asyncio.Queue[Event | None]]:
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.setdefault(id, set()).add(events)
        try:
            yield events
        finally:
            self._listeners[id].discard(events)
            if not self._listeners[id]:
                del self._listeners[id]

    def _tell(self, record: JobRecord, event: Event) -> None:
        for events in (*self._listeners.get(record.id, ()), *self._listeners.get(ALL, ())):
            if events.qsize() < BACKLOG or event["type"] not in ("progress", "preview", "position"):
                events.put_nowait(event)

    def _tell_state(self, record: JobRecord) -> None:
        if self._listeners:
            self._tell(record, {"type": "state", "id": record.id, "job": self.describe(record)})

    def _tell_positions(self) -> None:
        if self._listeners:
            for place, id in enumerate(self.waiting.order()):
                self._tell(self.active[id], {"type": "position", "id": id, "position": place})

    def _end_streams(self) -> None:
        self.closing = True
        for events in (one for listening in self._listeners.values() for one in listening):
            events.put_nowait(None)
