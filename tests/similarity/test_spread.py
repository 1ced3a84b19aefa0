"""Is every shard done once, when a worker dies? Nothing here imports torch, so that workers start quickly."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from reverie.similarity.curation.samples import Message, by_processes


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
