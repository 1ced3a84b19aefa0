"""Parallel work on shards: the same function in processes of this machine, or by Ray on many.

The function takes a shard's path, leaves its results in files of that shard's own, written beside and renamed, and
returns a small message. So a shard whose worker dies is simply done again: nothing is lost, and nothing counted twice.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from reverie.errors import ReverieError

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


def _by_ray(address: str, work: Work, shards: Sequence[str]) -> Iterator[Message]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of the cluster it starts
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ReverieError(f"no Ray cluster at '{address}': {str(error).splitlines()[0]}") from error
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
