"""Samples of webdataset shards (neighbouring members of one key), and work on many shards in parallel."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from reverie.data.captioned import PICTURES
from reverie.errors import ReverieError
from reverie.files import TAR_ERRORS, reason_of, tar_members, tar_samples, tar_writer

REACHED_WITHIN = 10.0  # seconds
LARGEST_MEMBER = 1 << 28  # bytes: what says that it is larger is no picture to learn from


class Stored(NamedTuple):
    """A file of a shard: its name in the tar, and its content."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Sample:
    """Hold the files of one key, by their endings."""

    key: str
    files: Mapping[str, Stored]
    """In the shard's order."""

    def content(self, *endings: str) -> bytes | None:
        """Return the first file of one of these endings."""
        return next((self.files[ending].content for ending in endings if ending in self.files), None)

    @property
    def picture(self) -> bytes | None:
        """Return the picture's file."""
        return self.content(*PICTURES)

    @property
    def text(self) -> str | None:
        """Return the caption."""
        content = self.content("txt")
        return None if content is None else content.decode("utf-8", "replace").strip()


def find_shards(source: str | Path) -> list[Path]:
    """List the shards of a folder by name, or the one given. Raises ReverieError where there are none."""
    source = Path(source)
    shards = [source] if source.is_file() else sorted(source.glob("*.tar"))
    if not shards:
        raise ReverieError(f"no shards in '{source}'; give a folder that holds 00000.tar, such as img2dataset writes")
    return shards


def read_samples(shard: Path) -> Iterator[Sample]:
    """Read a shard's samples in order. Raises ReverieError where it is damaged, after the samples before that."""
    try:
        members = (member for member in tar_members(shard, "r") if member.size <= LARGEST_MEMBER)
        for key, files in tar_samples(Stored(member.name, member.read()) for member in members):
            yield Sample(key, files)
    except TAR_ERRORS as error:
        raise ReverieError(f"the shard '{shard}' is damaged: {reason_of(error)}") from error


def write_samples(shard: Path, samples: Iterable[Sample]) -> None:
    """Write samples as a shard; the same samples give the same bytes."""
    with tar_writer(shard) as add:
        for sample in samples:
            for stored in sample.files.values():
                add(stored.name, stored.content)


Message = dict[str, Any]
Work = Callable[[str], Message]
Spread = Callable[[Work, Sequence[str]], Iterator[Message]]
ATTEMPTS = 3  # times that no shard at all is finished before a worker dies


def here(work: Work, shards: Sequence[str]) -> Iterator[Message]:
    """Do one shard after the other in this process."""
    yield from map(work, shards)


def by_processes(workers: int) -> Spread:
    """Spread shards over processes of this machine."""
    if workers < 1:
        raise ReverieError(f"{workers} workers do nothing; give 1 or more")
    return here if workers == 1 else partial(_by_processes, workers)


def by_ray(address: str = "local") -> Spread:
    """Spread shards over a Ray cluster by Ray Data: the one at an address, or one that is started here ("local").

    All its machines must see the shards and the output under the same paths. Raises ReverieError where Ray is missing.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ReverieError("Ray is not installed; pip install 'reverie[dist]', or use `workers`") from error
    return partial(_by_ray, address)


def _by_processes(workers: int, work: Work, shards: Sequence[str]) -> Iterator[Message]:
    left, attempts = list(shards), ATTEMPTS
    while left:
        # Not forked: torch's threads do not survive that.
        pool = ProcessPoolExecutor(min(workers, len(left)), multiprocessing.get_context("spawn"), _outlived_by_none)
        waiting = {pool.submit(work, shard): shard for shard in left}
        try:
            for future in as_completed(waiting):
                message = future.result()
                left.remove(waiting[future])
                attempts = ATTEMPTS
                yield message
        except BrokenProcessPool as error:
            attempts -= 1
            if not attempts:
                raise ReverieError(
                    f"workers died {ATTEMPTS} times in a row, {len(left)} shards are left; give fewer `workers` if "
                    "memory ran out, and run it again to go on"
                ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _outlived_by_none() -> None:
    """End this worker when the process that started it is killed, which it would not notice by itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def join_cluster(address: str, **options: Any) -> None:
    """Join the Ray cluster at an address, or start one here ("local"), with options of `ray.init`.

    Raises ReverieError where there is none: at a host and port within REACHED_WITHIN, for which Ray itself would wait.
    """
    try:
        place = urlsplit(address if "//" in address else f"//{address}")
        if place.port is not None:
            socket.create_connection((place.hostname, place.port), REACHED_WITHIN).close()
    except (OSError, ValueError) as error:
        raise ReverieError(f"no Ray cluster at '{address}': {reason_of(error)}", field="ray") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of the cluster it starts
    import ray

    try:
        ray.init(address, log_to_driver=False, **options)
    except Exception as error:  # Ray raises no narrower one where it starts too slowly
        raise ReverieError(
            f"no Ray cluster at '{address}': {str(error).splitlines()[0]}; one that asks for a token needs "
            "RAY_AUTH_MODE=token",
            field="ray",
        ) from error


def _by_ray(address: str, work: Work, shards: Sequence[str]) -> Iterator[Message]:
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        join_cluster(address, logging_level=logging.ERROR)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        done = rows.map(partial(_ray_row, work))  # Ray does a task again, three times, whose worker or machine dies
        for row in done.iter_rows():
            yield json.loads(row["message"])
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[-1]
        raise ReverieError(f"Ray gave up: {line}; what is done stays done, run it again to go on") from error
    finally:
        if started:
            ray.shutdown()


def _ray_row(work: Work, row: dict[str, str]) -> dict[str, str]:
    """Do one shard; the message goes as JSON, so that Arrow does not guess at its columns."""
    return {"message": json.dumps(work(row["shard"]))}
