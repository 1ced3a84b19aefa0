"""How many pictures a second does a live session draw, and what takes how long? And beside OpenVINO at 512 pixels?

The bundled few-step model draws a sketch that changes every time; its stages are timed by themselves. With
`--openvino-python` (`python -m venv ov && ov/bin/pip install openvino`) the networks of SD-Turbo and SDXS-512, with
random weights, draw a picture of 512 pixels in one step, between TAESD's halves: on either side in a process of its
own, in turns, with the largest resident set of each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import torch
from PIL import Image, ImageDraw

import reverie
from live_networks import NAMES
from measure import Remote, Row, alternate, borrowed, peak_by_now, run
from reverie.pipeline import Pipeline
from reverie.runtime import native

PROMPT, GREY, BROWN = "a bear on a green background", "#a0a0a0", "#8a5a2b"
HERE = Path(__file__).parent
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> int:
    """Print the tables; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure live drawing.")
    parser.add_argument("--model", default="reverie-turbo", help="model that draws live")
    parser.add_argument("--vae", help="autoencoder in place of the model's own, such as a TAESD")
    parser.add_argument("--strength", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the processor, on a busy machine")
    parser.add_argument("--openvino-python", type=Path, help="Python of an environment with openvino")
    parser.add_argument("--networks", nargs="*", default=list(NAMES), choices=NAMES, help="which, beside OpenVINO")
    parser.add_argument("--folder", type=Path, help="keeps the networks' files for another run")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, by the clock of the {options.clock}")
    stages(reverie.load(options.model, device="cpu", vae=options.vae), options.strength, options.rounds, clock)
    if options.openvino_python is not None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            print("| 512 px, one step | reverie | OpenVINO | times as fast | rounds | peak, MiB | OpenVINO's | share |")
            print("|---|---:|---:|---:|---:|---:|---:|---:|")
            for name in options.networks:
                beside(name, folder, options.openvino_python, max(3, options.rounds // 6), options.clock)
    return 0


def sketch(number: int, size: int) -> Image.Image:
    """Return a sketch that is another for each number."""
    picture = Image.new("RGB", (size, size), GREY)
    left = size // 8 + number % (size // 4)
    ImageDraw.Draw(picture).ellipse((left, size // 4, left + size // 2, 3 * size // 4), fill=BROWN)
    return picture


def stages(system: Pipeline, strength: float, rounds: int, clock: Callable[[], float]) -> None:
    """Print how many pictures a second a session draws, and how long each of its networks takes."""
    live = system.live(PROMPT, strength=strength, seed=7)
    sketches = iter(sketch(number, system.size) for number in range(4 * rounds))
    whole = timed(lambda: live.draw(next(sketches)), rounds, clock)
    latents = system.codec.encode([next(sketches)])
    network = system.network(system.encode_prompt([PROMPT]))
    with torch.no_grad():
        times = {
            "a picture": whole,
            "encoding the sketch": timed(lambda: system.codec.encode([next(sketches)]), rounds, clock),
            "a step of the U-Net": timed(lambda: network(latents, torch.tensor([500.0])), rounds, clock),
            "decoding": timed(lambda: system.codec.pictures(latents), rounds, clock),
            "the prompt, once": timed(lambda: system.encode_prompt([PROMPT]), rounds, clock),
        }
    print(f"{system.name}, {system.size} px, strength {strength:g}: {1 / whole:.1f} pictures a second")
    print("\n".join(f"| {name} | {1000 * seconds:.1f} ms |" for name, seconds in times.items()))


def timed(call: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    """Return the median seconds of a call; the first warms up."""

    def once() -> float:
        start = clock()
        call()
        return clock() - start

    return median([once() for _ in range(rounds + 1)][1:])


def beside(name: str, folder: Path, python: Path, rounds: int, clock: str) -> None:
    """Print the rows of one architecture: in float32, and in bfloat16 where the processor has it."""
    ours, theirs = (sys.executable, "live_networks.py"), (str(python), "peer_live.py")

    def drawing(side: tuple[str, str], dtype: str) -> Remote:
        return Remote(command(*side, "draw", name, folder, dtype), PYTHONPATH=borrowed())

    for side in (ours, theirs):
        run(command(*side, "write", name, folder, "float32"), PYTHONPATH=borrowed())
    for dtype in ("float32", "bfloat16"):
        if not native(getattr(torch, dtype)):
            print(f"| {name}, {dtype} | this processor does not compute in it | | | | | | |")
            continue
        with closing(drawing(ours, dtype)) as mine, closing(drawing(theirs, dtype)) as peer:
            times = alternate(lambda: mine.seconds(clock), lambda: peer.seconds(clock), rounds)
            peaks = [peak_by_now(one.process.pid) or 0.0 for one in (mine, peer)]
        row = Row(name, "s", *times)
        low, high = row.noise or (0.0, 0.0)
        seconds = f"{median(row.ours):.2f} s | {median(row.theirs):.2f} s | {row.gain:.2f} | {low:.2f} to {high:.2f}"
        print(f"| {name}, {dtype} | {seconds} | {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[0] / peaks[1]:.2f} |")


def command(python: str, script: str, what: str, name: str, folder: Path, dtype: str) -> list[str]:
    """Return what starts a side."""
    return [python, str(HERE / script), what, name, str(folder), str(torch.get_num_threads()), dtype]


if __name__ == "__main__":
    sys.exit(main())
