"""Does the same command go on where `kill -9` stopped it, and end as if it never had been?"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from reverie.similarity.curation.rules import Rules
from reverie.similarity.curation.run import curate
from reverie.similarity.embed import load_clip
from reverie.similarity.update import update

from .test_curate import contents, picture, write_shard

RULES = Rules(min_cosine=-0.5, min_text=5, min_bytes=300, duplicates=0.9999)
LIMITS = ["--min-cosine", "-0.5", "--min-bytes", "300", "--duplicates", "0.9999"]
SHARDS, SAMPLES = 6, 4
REVERIE = str(Path(sys.executable).with_name("reverie"))

# Both at once, step by step, so that one kill stops both in the middle.
DRIVER = f"""
import sys
from itertools import zip_longest
import torch
from reverie.similarity.curation.rules import Rules
from reverie.similarity.curation.run import curate
from reverie.similarity.embed import load_clip
from reverie.similarity.update import update

torch.set_num_threads(1)
shards, index, curated = sys.argv[1:]
for _ in zip_longest(update(index, shards, load_clip(), batch=4), curate(shards, curated, {RULES})):
    print("step", flush=True)
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write shards of which one picture is torn and one text too short."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(SHARDS):
        files = []
        for place in range(SAMPLES):
            torn = (number, place) == (2, 1)
            files.append((f"{number}{place}.png", b"torn" if torn else picture(10 * number + place)))
            files.append((f"{number}{place}.txt", b"abc" if place == 3 else b"a picture"))
        write_shard(folder / f"{number:05}.tar", files)
    return folder


def finish(shards: Path, folder: Path) -> dict[str, bytes]:
    """Index and curate in this process; return all that is then on disk."""
    for _ in update(folder / "index", shards, load_clip(), batch=4):
        pass
    for _ in curate(shards, folder / "curated", RULES):
        pass
    return contents(folder)


def test_killed_indexing_and_curation_go_on(shards: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    arguments = [str(shards), str(stopped / "index"), str(stopped / "curated")]
    with subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for _ in range(4):
            assert running.stdout.readline() == "step\n"
        running.kill()
    measured = len(list((stopped / "curated/measured").glob("*.json")))
    assert 0 < measured < SHARDS
    (stopped / "curated/measured/.00005.json.1.part").write_text("{")  # what a kill within a write leaves
    assert finish(shards, stopped) == finish(shards, tmp_path / "whole")


@pytest.mark.slow
def test_two_workers_give_what_one_gives_also_when_all_are_killed(shards: Path, tmp_path: Path) -> None:
    def command(folder: str, workers: int) -> list[str]:
        return [REVERIE, "curate", str(shards), "-o", str(tmp_path / folder), *LIMITS, "--workers", str(workers)]

    for workers in (1, 2):
        subprocess.run(command(f"by{workers}", workers), check=True, capture_output=True)
    assert contents(tmp_path / "by1") == contents(tmp_path / "by2")
    with subprocess.Popen(command("killed", 2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        while not list((tmp_path / "killed/measured").glob("*.json")):
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
        assert running.stderr is not None
        running.stderr.read()  # ends when the last worker is gone, which holds the other end
    assert len(list((tmp_path / "killed/measured").glob("*.json"))) < SHARDS
    subprocess.run(command("killed", 2), check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "by1")
