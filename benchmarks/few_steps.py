"""What is lost in few steps, and what is won? The turbo model in 4, 2 and 1 steps beside its teacher in 20 guided ones.

The judge and its shares are those of beside.py, of one run; seconds are the medians of pictures drawn in turns by the
loaded models, with all threads. The sheet of few-steps.png has a row for each number of steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from PIL import Image

import reverie
from beside import measured, prompt_kinds
from figures import Prompt, spread
from quality import ASSETS, ROOT, keep
from reverie.corpora.concepts import concepts
from reverie.train.probe import Probe, load_probe

TEACHER, STUDENT = ASSETS / "bundled", ASSETS / "turbo"
PROMPT = "a panda on a green background"
SHOWN = ("a cat", "a bear", "a red car", "a blue bear", "an apple next to a book", "a house", "a rocket", "一只熊猫")
SIDE = 128  # pixels of a picture on the sheet


def main() -> int:
    """Print the table, a row for each number of steps; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure the turbo model beside its teacher.")
    parser.add_argument("--student", type=Path, default=STUDENT, help="model in few steps, a folder")
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "judge", help="folder of the probe")
    parser.add_argument("--limit", type=int, default=52, help="at most so many prompts of a kind")
    parser.add_argument(
        "--kinds", nargs="*", default=["named", "bare", "coloured"], help="which prompts, see beside.py"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed pictures of each row")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "few-steps", help="folder for the sheets")
    options = parser.parse_args()
    rows = [(TEACHER, 20), *((options.student, steps) for steps in (4, 2, 1))]
    judge, names = load_probe(options.judge)
    every = prompt_kinds(concepts("common"))
    asked = {kind: spread(every[kind], options.limit) for kind in options.kinds}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    drawn = [
        shares(folder, steps, asked, judge, names, options.out / f"{folder.name}-{steps}") for folder, steps in rows
    ]
    torch.set_num_threads(threads)
    took = seconds(rows, options.rounds)
    keep(sheet(rows), options.out / "few-steps.png")
    print("| model | steps | " + " | ".join(options.kinds) + " | seconds | times as fast |")
    print("|---|---:|" + "---:|" * (len(options.kinds) + 2))
    for (folder, steps), row, own in zip(rows, drawn, took, strict=True):
        cells = [f"{row[kind]:.2f} ({100 * row[kind] / first:.0f} %)" for kind, first in drawn[0].items()]
        print(f"| {folder.name} | {steps} | {' | '.join(cells)} | {own:.3f} | {took[0] / own:.1f} |")
    return 0


def sheet(rows: list[tuple[Path, int]]) -> Image.Image:
    """Draw the prompts that are shown, a row of the sheet for each model and its steps."""
    cells = []
    for folder, steps in rows:
        model = reverie.load(folder, device="cpu")
        drawn = [model.text_to_image(prompt, seed=1, steps=steps)[0] for prompt in SHOWN]
        cells += [picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for picture in drawn]
    return reverie.grid(cells, len(SHOWN))


def shares(
    folder: Path, steps: int, asked: Mapping[str, Sequence[Prompt]], judge: Probe, names: Sequence[str], out: Path
) -> dict[str, float]:
    """Return the share of the judge's ceiling that a model reaches in so many steps, by kind of prompt."""
    given = argparse.Namespace(steps=steps, guidance=None, out=out)
    figures = dict(measured(folder, dict(asked), judge, names, given))
    return {kind: figures[f"{kind}: share of the ceiling"] for kind in asked}


def seconds(rows: list[tuple[Path, int]], rounds: int) -> list[float]:
    """Return the median seconds of one picture of each row, drawn in turns."""
    models = {folder: reverie.load(folder, device="cpu") for folder, _ in rows}
    took: list[list[float]] = [[] for _ in rows]
    for turn in range(rounds + 1):
        for (folder, steps), own in zip(rows, took, strict=True):
            start = time.perf_counter()
            models[folder].text_to_image(PROMPT, seed=turn, steps=steps)
            own.append(time.perf_counter() - start)
    return [median(own[1:]) for own in took]  # the first of each warms up


if __name__ == "__main__":
    sys.exit(main())
