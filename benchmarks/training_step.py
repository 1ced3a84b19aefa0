"""How fast is a training step of the bundled U-Net, beside another state of this code, and beside diffusers' own loop?

    python benchmarks/training_step.py --before ../other/src --precision bfloat16

Each side is a process of one thread that takes a few steps when it is its turn. diffusers' is the loop of its example
train_text_to_image.py (without accelerate) on a U-Net of the same configuration: its default attention, torch's AdamW,
autocast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "src"
ROWS, TOKENS, STEPS = 16, 24, 4  # of a batch, of a caption, of a turn

COMMON = f"""
import json, sys, time
from pathlib import Path
import torch
folder, precision = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(0)
x, noise = torch.randn(2, {ROWS}, 4, 16, 16)
t, context = torch.randint(1000, ({ROWS},)), torch.randn({ROWS}, {TOKENS}, 192)
"""

REVERIE = """
from torch import nn
from reverie.checkpoints.load import load_unet
from reverie.train.loop import Learner, RunSettings

class Objective:
    def __init__(self):
        self.averaged = load_unet(folder).train()
        self.networks = nn.ModuleDict({"unet": self.averaged})
    def groups(self):
        return {"unet": list(self.averaged.parameters())}
    def losses(self, step, part):
        loss = (self.averaged(x, t.float(), context) - noise).square().mean()
        yield "unet", loss, {"loss": loss.item()}
    def after_step(self):
        pass

settings = RunSettings(steps=10**6, lr=1e-4, weight_decay=1e-2, threads=1, device="cpu", precision=precision)
learner = Learner(Objective(), settings)
step = lambda: learner.step(1)
"""

DIFFUSERS = """
from diffusers import UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).train()
optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)

def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        predicted = unet(x, t, context, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
    loss.item()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
"""

TURNS = """
step()
for asked in sys.stdin:
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(int(asked)):
        step()
    print(time.process_time() - busy, time.perf_counter() - start, flush=True)
"""


class Side:
    """One way to take a step, in a process of its own."""

    def __init__(self, code: str, source: Path, precision: str) -> None:
        folder = HERE / "reverie/assets/bundled/unet"
        command = [sys.executable, "-W", "ignore", "-c", COMMON + code + TURNS, str(folder), precision]
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.busy: list[float] = []
        self.wall: list[float] = []

    def take_turn(self) -> None:
        """Take some steps and note how long one took, by the processor and by the clock."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{STEPS}\n")
        busy, wall = (float(value) / STEPS for value in self.process.stdout.readline().split())
        self.busy.append(busy)
        self.wall.append(wall)


def main() -> None:
    """Let the sides take turns and print medians, and how many times as fast as each other side this code is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder src of another state of this code")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=12)
    asked = parser.parse_args()
    sides = {"reverie": Side(REVERIE, HERE, asked.precision), "diffusers": Side(DIFFUSERS, HERE, asked.precision)}
    if asked.before:
        sides["before"] = Side(REVERIE, asked.before.resolve(), asked.precision)
    for side in [*sides.values()] * asked.rounds:
        side.take_turn()
    ours = sides["reverie"]
    for name, side in sides.items():
        gains = [theirs / our for theirs, our in zip(side.busy, ours.busy, strict=True)]
        told = f"{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f}) of reverie's"
        busy, wall = (1000 * statistics.median(values) for values in (side.busy, side.wall))
        print(f"{name:10} {busy:6.0f} ms of processor, {wall:6.0f} ms, {told if side is not ours else ''}")
        side.process.stdin.close()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
