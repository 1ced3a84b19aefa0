"""How fast does CLIP learn, and in how much memory? The ways of one recipe side by side, alternating in one run.

Each way takes a few steps in a process of its own, in turn, several rounds. Told are, of the best step, pairs a second
by the clock and by the seconds that a core worked (which other work on the machine changes less), and the peak of a
process's memory over what it held before the first step. Two processes share the same batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
objective = "clip"
[run]
steps = {steps}
lr = 1e-3
threads = 1
device = "{device}"
precision = "{precision}"
log_every = 1
recompute_layers = {layers}
[text]
captions = 2000
[vision]
[contrast]
batch = {batch}
naming = 0
chunk = {chunk}
loss = "{loss}"
"""
WAYS: dict[str, dict[str, str]] = {
    "whole batch at once": {},
    "sigmoid loss": {"loss": "sigmoid"},
    "chunks of an eighth": {"chunk": "eighth"},
    "layers computed again": {"layers": "true"},
    "both": {"chunk": "eighth", "layers": "true"},
    "bfloat16": {"precision": "bfloat16"},
    "two processes": {"processes": "2"},
}
WORKER = """
import json, os, resource, sys, time
from pathlib import Path
from reverie.train.loop import Learner, RunSettings
from reverie.train.clip import build
from reverie.train.recipe import read, section
import torch
from reverie.train import parallel

torch.set_num_threads(1)
sections = read(Path(sys.argv[1]))
settings = section(sections, "run", RunSettings)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with parallel.process_group(torch.device(settings.device)) as device:
    objective = build(sections, 0, Path())
    objective.move(device)
    learner = Learner(objective, settings)
    batch = objective.batches(0, *learner.parts)
    objective.batches = lambda step, part: batch  # what is measured is learning, not drawing
    before, times, worked = peak(), [], []
    for step in range(settings.steps):
        start, busy = time.perf_counter(), time.process_time()
        learner.step(step)
        times.append(time.perf_counter() - start)
        worked.append(time.process_time() - busy)
    if parallel.is_first():
        told = {"seconds": min(times[1:]), "worked": min(worked[1:]), "memory": peak() - before}
        print(json.dumps(told))
"""


def measure(way: dict[str, str], batch: int, steps: int, device: str) -> dict[str, float]:
    """Take some steps in processes of their own."""
    chunk = batch // 8 // int(way.get("processes", 1)) if way.get("chunk") else 0
    filled = {"precision": "float32", "layers": "false", "loss": "softmax"} | way
    with tempfile.TemporaryDirectory() as folder:
        recipe, worker = Path(folder, "recipe.toml"), Path(folder, "worker.py")
        recipe.write_text(RECIPE.format(**filled | {"steps": steps, "batch": batch, "chunk": chunk, "device": device}))
        worker.write_text(WORKER)
        command = [sys.executable, str(worker), str(recipe)]
        if processes := way.get("processes"):
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
            command = [sys.executable, *torchrun, str(worker), str(recipe)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure all ways and print a table."""
    parser = argparse.ArgumentParser(description="Measure CLIP's training, on the shape of the bundled CLIP.")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            found = measure(way, options.batch, options.steps, options.device)
            last = best.get(name, found)
            best[name] = {key: min(last[key], value) for key, value in found.items()}
            print(name, found, file=sys.stderr, flush=True)
    print(f"batch {options.batch}, best of {options.rounds} x {options.steps - 1} steps\n")
    print("| way | pairs a second | by a core's seconds, each process | memory of a step, MB |\n|---|---:|---:|---:|")
    for name, found in best.items():
        clock, core = options.batch / found["seconds"], options.batch / found["worked"]
        print(f"| {name} | {clock:.0f} | {core:.0f} | {found['memory']:.0f} |")


if __name__ == "__main__":
    main()
