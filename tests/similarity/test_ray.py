"""Does a Ray cluster of two nodes give what one process gives, also when a worker and a node die in the middle?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from reverie.similarity.curation.rules import Rules
from reverie.similarity.curation.run import curate

from .test_curate import contents, picture, write_shard

pytestmark = pytest.mark.slow
RULES = Rules(min_cosine=-0.5, min_text=5, min_bytes=300, duplicates=0.9999)
SHARDS = 8

# In a process of its own: Ray leaves threads and warnings behind. The work is curation's own. On its way the worker
# of shard 3 is killed, and on the second node one holds its shard until that node is taken away.
DRIVER = f"""
import json, os, signal, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from reverie.similarity.curation.rules import Rules
from reverie.similarity.curation.run import curate
from reverie.similarity.curation.samples import by_ray

class Fragile:
    def __init__(self, work, log, second):
        self.work, self.log, self.second = work, Path(log), second

    def __call__(self, shard):
        step, name = type(self.work).__name__, Path(shard).stem
        here = ray.get_runtime_context().get_node_id() == self.second
        attempts = len(list(self.log.glob(step + "-" + name + "-*")))
        died = len(list(self.log.glob(step + "-" + name + "-*-first")))
        mark = self.log / (step + "-" + name + "-" + str(attempts) + ("-second" if here else "-first"))
        mark.write_text("")
        if here:
            time.sleep(600)
        if step == "Measuring" and name == "00003" and not died:
            os.kill(os.getpid(), signal.SIGKILL)
        while name > "00003" and not list(self.log.glob("*-second")):
            time.sleep(0.05)
        return self.work(shard)

source, out, log, outcome = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "object_store_memory": 100 << 20}})
second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
ray.init(address=cluster.address, log_to_driver=False)
alive = [sum(node["Alive"] for node in ray.nodes())]
inner, messages = by_ray(), []

def spread(work, shards):
    for message in inner(Fragile(work, log, second.node_id), shards):
        messages.append(message["shard"])
        while second in cluster.worker_nodes and len(messages) >= 3:
            if list(Path(log).glob("*-second")):  # its worker is in the middle of a shard
                cluster.remove_node(second, allow_graceful=False)
            time.sleep(0.05)
        yield message

for event in curate(source, out, {RULES}, spread=spread):
    pass
alive.append(sum(node["Alive"] for node in ray.nodes()))
found = dict(seen=event.outcome.seen, kept=event.outcome.kept, alive=alive, messages=messages)
Path(outcome).write_text(json.dumps(found))  # not printed: Ray prints, too
ray.shutdown()
cluster.shutdown()
"""


def test_two_nodes_give_what_one_process_gives(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for folder in ("shards", "log"):
        (tmp_path / folder).mkdir()
    for number in range(SHARDS):
        files = [(f"{number}{i}.png", picture(10 * number + i)) for i in range(3)]
        texts = [(f"{number}{i}.txt", b"a picture" if i else b"abc") for i in range(3)]
        shard = tmp_path / f"shards/{number:05}.tar"
        write_shard(shard, [file for pair in zip(files, texts, strict=True) for file in pair])
    for _ in curate(tmp_path / "shards", tmp_path / "alone", RULES):
        pass
    # Ray gives its workers the least priority, under which they get nowhere on a machine that is busy otherwise.
    quiet = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *(str(tmp_path / name) for name in ("shards", "ray", "log", "outcome"))],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | quiet,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "outcome").read_text())
    assert (found["seen"], found["kept"], found["alive"]) == (3 * SHARDS, 2 * SHARDS, [2, 1])
    assert set(Counter(found["messages"]).values()) == {2}  # of measuring and of writing, none doubled
    attempts = Counter(file.name.rsplit("-", 2)[0] for file in (tmp_path / "log").iterdir())
    assert attempts["Measuring-00003"] >= 2  # its worker was killed
    assert sum(attempts.values()) >= 2 * SHARDS + 2  # and what the lost node had begun was done again
    assert contents(tmp_path / "alone") == contents(tmp_path / "ray")
