"""Workers on a Ray cluster: actors on any of its machines, which see the server's folders under the same paths.

The web process keeps the queue, the store and the protocols, and asks actors where it would ask processes. Ray does
not do a job again whose actor dies: the dispatcher does, as with processes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from reverie.errors import ReverieError
from reverie.server.settings import Settings
from reverie.server.worker import LoadedModels, Said, Task, carry_out, offer_loras

log = logging.getLogger("reverie.server")
Hear = Callable[["RemoteWorker", Said | None], None]


def connect(address: str) -> Callable[[Settings, Hear], RemoteWorker]:
    """Join the cluster at an address ("local" starts one here), and return what hires its workers.

    Raises ReverieError where Ray is missing, or no cluster is there.
    """
    from reverie.similarity.curation.samples import join_cluster  # which a server without Ray does not read

    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ReverieError("Ray is not installed; pip install 'reverie[dist]', or leave out `ray`") from error
    join_cluster(address, ignore_reinit_error=True)
    return RemoteWorker


class Hand:
    """What runs in an actor: it holds models, and does one job after another, which other calls may cancel."""

    def __init__(self, settings: Settings) -> None:
        offer_loras(settings)
        self._settings, self._models = settings, LoadedModels(settings)
        self._cancelled: set[str] = set()

    def load(self) -> list[str]:
        """Load the default model, and name those that are loaded."""
        self._models.load_default()
        return self._models.names

    def do(self, task: Task) -> Iterator[Said]:
        """Do a task, and yield what is said of it; at last the models that are loaded."""
        said: SimpleQueue[Said | None] = SimpleQueue()

        def work() -> None:
            carry_out(task, self._settings, self._models.load, self._cancelled.__contains__, said.put)
            said.put(None)

        threading.Thread(target=work).start()
        while (one := said.get()) is not None:  # Ray sends to what yields, which `yield from` would pass on
            yield one
        yield Said("", "models", self._models.names)

    def cancel(self, task: str) -> None:
        """Stop a task at its next step."""
        self._cancelled.add(task)

    def unload(self, model: str) -> list[str]:
        """Let go of a model, and name those that are loaded."""
        self._models.unload(model)
        return self._models.names

    def pid(self) -> int:
        """Return the process's id on its machine."""
        return os.getpid()


class RemoteWorker:
    """An actor, seen from the web process as a `Worker` is."""

    def __init__(self, settings: Settings, hear: Hear) -> None:
        import ray

        gpus = 1 if settings.device == "cuda" else 0
        # Of the two calls at once one works, and the other cancels it.
        hand = ray.remote(Hand).options(num_cpus=1, num_gpus=gpus, max_concurrency=2)
        self._ray, self._hear, self._hand = ray, hear, hand.remote(settings)
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self.models: list[str] = []
        self.task: str | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    @property
    def pid(self) -> int:
        """Return the actor's process on its machine."""
        return self._ray.get(self._hand.pid.remote())

    def start(self, task: Task) -> None:
        """Begin a task; it says how it goes."""
        self.task = task.id
        self._tasks.put(task)

    def cancel(self) -> None:
        """Stop the task at its next step."""
        self._hand.cancel.remote(self.task)

    def unload(self, model: str) -> None:
        """Let go of a model, after the task at hand."""
        self._tasks.put(model)

    def kill(self) -> None:
        """End the actor at once."""
        self._ray.kill(self._hand)

    stop = kill

    def _follow(self) -> None:
        """Tell what the actor says, until it is gone."""
        try:
            self._hear(self, Said("", "models", self._ray.get(self._hand.load.remote())))
            while True:
                asked = self._tasks.get()
                if isinstance(asked, Task):
                    for said in self._hand.do.options(num_returns="streaming").remote(asked):
                        self._hear(self, self._ray.get(said))
                else:
                    self._hear(self, Said("", "models", self._ray.get(self._hand.unload.remote(asked))))
        except self._ray.exceptions.RayError as error:
            log.error("an actor is gone: %s", str(error).strip().splitlines()[-1])
            self._hear(self, None)
