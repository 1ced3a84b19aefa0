"""Workers: processes that hold models and do one job after another, so that the web process answers at any time."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.jobs.events import Event, Finished, Load, Preview, Saved
from reverie.media.pictures import encode_preview
from reverie.progress import Progress
from reverie.requests import adapter_files
from reverie.server.settings import Settings
from reverie.server.submissions import Submission

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline

PREVIEW_INTERVAL = 0.1  # seconds between two previews at least

log = logging.getLogger("reverie.server")


class Task(NamedTuple):
    """A job that a worker is to do: its id, under which its files are named, and what was asked."""

    id: str
    submission: Submission


class Said(NamedTuple):
    """What a worker says of a task: progress, preview, note, file, or the last word, done, failed or cancelled."""

    id: str
    what: str
    value: Any


class Worker:
    """A worker process, seen from the web process. `hear` gets what it says, on a thread; None once it is gone."""

    def __init__(self, settings: Settings, hear: Callable[[Worker, Said | None], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, settings), name="reverie worker", daemon=True)
        self._process.start()
        theirs.close()
        self._hear = hear
        self.models: list[str] = []
        self.task: str | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Return the process's id."""
        return self._process.pid

    def start(self, task: Task) -> None:
        """Begin a task; it says how it goes."""
        self.task = task.id
        self._send(task)

    def cancel(self) -> None:
        """Stop the task at its next step."""
        self._send(self.task)

    def unload(self, model: str) -> None:
        """Let go of a model, after the task at hand."""
        self._send(("unload", model))

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def stop(self, patience: float = 5.0) -> None:
        """End the process, which breaks off its task."""
        self._send(None)
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self, message: object) -> None:
        with suppress(OSError):  # a worker that is gone is heard of otherwise
            self._connection.send(message)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._hear(self, self._connection.recv())
        self._hear(self, None)


def work(connection: Connection, settings: Settings) -> None:
    """Do tasks until the connection ends: what a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the web process, which ends this one
    if settings.workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.workers)))
    offer_loras(settings)
    inbox: SimpleQueue[Any] = SimpleQueue()
    cancelled: set[str] = set()
    threading.Thread(target=_receive, args=(connection, inbox, cancelled), daemon=True).start()
    models = LoadedModels(settings)
    models.load_default()
    while True:
        connection.send(Said("", "models", models.names))
        message = inbox.get()
        if isinstance(message, Task):
            carry_out(message, settings, models.load, cancelled.__contains__, connection.send)
        else:
            models.unload(message[1])


def offer_loras(settings: Settings) -> None:
    """Let the prompts of this process's jobs name the LoRAs of a server."""
    if settings.loras:
        os.environ[adapter_files.FOLDERS] = os.pathsep.join(map(str, settings.loras))


def _receive(connection: Connection, inbox: SimpleQueue[Any], cancelled: set[str]) -> None:
    """Sort what arrives; with the connection, or by None, the process ends, whatever it does."""
    with suppress(EOFError, OSError):
        while (message := connection.recv()) is not None:
            if isinstance(message, str):
                cancelled.add(message)
            else:
                inbox.put(message)
    os._exit(0)


def carry_out(
    task: Task, settings: Settings, load: Load, is_cancelled: Callable[[str], bool], say: Callable[[Said], None]
) -> None:
    """Do a task and `say` how it goes; the last thing said is done, failed or cancelled.

    `load` gives a model of a name, and `is_cancelled` tells of a task's name whether its client gave it up.
    """
    shown = 0.0

    def tell(event: Event) -> None:
        nonlocal shown
        if isinstance(event, Preview):
            if time.monotonic() - shown < PREVIEW_INTERVAL:
                return
            shown = time.monotonic()
        say(Said(task.id, *_plain(event, settings)))

    try:
        for event in task.submission.job(task.id, settings).run(load, tell):
            if is_cancelled(task.id) and not isinstance(event, Finished):
                say(Said(task.id, "cancelled", None))
                return
            tell(event)
    except (ReverieError, OSError) as error:
        text = str(error) if isinstance(error, ReverieError) else reason_of(error)
        say(Said(task.id, "failed", (settings.describe(text), getattr(error, "field", None), 422)))
    except Exception as error:
        log.exception("job %s", task.id)
        say(Said(task.id, "failed", (f"the server failed: {type(error).__name__}; its log says more", None, 500)))


def _plain(event: Event, settings: Settings) -> tuple[str, Any]:
    """Return an event's name and its plain values."""
    if isinstance(event, Progress):
        return "progress", {"done": event.done, "total": event.total, "unit": event.unit}
    if isinstance(event, Preview):
        return "preview", encode_preview(event.picture)
    if isinstance(event, Saved):
        return "file", event.path.name
    if isinstance(event, Finished):
        return "done", event.record | {"files": [Path(file).name for file in event.record.get("files", ())]}
    return "note", settings.describe(event.text)


class LoadedModels:
    """The models in memory, the least recently used let go of first where they pass the settings' bound."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._sizes: dict[str, int] = {}  # in bytes, of all that was ever loaded: parameters leave out what is packed

    @property
    def names(self) -> list[str]:
        """Return the names of those that are loaded."""
        return list(self._loaded)

    def load(self, name: str | None) -> Pipeline:
        """Return a model by its name or place, loaded if need be; None is the default of pictures."""
        name = name or self._settings.default("text_to_image")
        if name not in self._loaded:
            from reverie.pipeline import load  # brings torch, which takes seconds

            place = self._settings.places().get(name, Path(name))
            self._make_room(_size_on_disk(place))
            loaded = load(str(place), device=self._settings.device, dtype=self._settings.dtype)
            self._loaded[name], self._sizes[name] = loaded.remember_prompts(), _size_in_memory(loaded)
            self._make_room(0)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def load_default(self) -> None:
        """Load the default of pictures ahead; where it cannot be, whoever asks for it is told."""
        with suppress(ReverieError):
            self.load(None)

    def unload(self, name: str) -> None:
        """Let go of a model."""
        if self._loaded.pop(name, None) is not None:
            gc.collect()  # networks and their hooks refer to each other

    def _make_room(self, needed: int) -> None:
        while self._loaded and needed + sum(map(self._sizes.__getitem__, self._loaded)) > self._settings.memory:
            if not needed and len(self._loaded) == 1:
                return
            self.unload(next(iter(self._loaded)))


def _size_on_disk(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def _size_in_memory(pipeline: Pipeline) -> int:
    from reverie.runtime.weights import bytes_of  # brings torch

    networks = (pipeline.unet, pipeline.autoencoder, *pipeline.text_encoders)
    return sum(map(bytes_of, networks))
