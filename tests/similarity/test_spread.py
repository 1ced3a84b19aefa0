"""Is every shard done once, when a worker dies? Nothing here imports torch, so that workers start quickly."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reverie.errors import ReverieError
from reverie.similarity.curation.samples import Message, by_processes, join_cluster


def fragile(marker: Path, shard: str) -> Message:
    """Die once, in the middle."""
    if shard == "3" and not marker.exists():
        marker.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"shard": shard}


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    messages = list(by_processes(2)(partial(fragile, tmp_path / "marker"), [str(i) for i in range(8)]))
    assert sorted(message["shard"] for message in messages) == [str(i) for i in range(8)]
    assert (tmp_path / "marker").exists()


def test_an_address_where_nothing_listens_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would wait: it is not asked. What stands in for it says what it was asked for."""
    joined: list[Any] = []
    ray = SimpleNamespace(init=lambda address, **options: joined.append(address))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        for address in (place, f"ray://{place}", "local", "auto"):
            join_cluster(address)
    assert joined == [place, f"ray://{place}", "local", "auto"]
    begun = time.monotonic()
    for address in (place, f"ray://{place}", "nowhere.invalid:1", "127.0.0.1:99999"):
        with pytest.raises(ReverieError, match=f"^no Ray cluster at '{address}': [^\n]+$"):
            join_cluster(address)
    assert time.monotonic() - begun < 60
    assert len(joined) == 4
