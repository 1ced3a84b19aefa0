"""What do the approximate ways gain and cost? Time, the judge's verdict, and the distance to the exact picture."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

import reverie
from figures import Drawn, Judge, Prompt, prompt_sets, psnr, share, spread
from measure import machine
from reverie.corpora.concepts import concepts
from reverie.train.classifier import load_classifier

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Way:
    """Say what differs from drawing exactly: in the request, and in how the model is loaded."""

    request: dict[str, object] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)


WAYS = {
    "exact": Way(),
    "guidance from 0.1 to 0.9": Way({"guidance_interval": (0.1, 0.9)}),
    "guidance from 0.2 to 0.8": Way({"guidance_interval": (0.2, 0.8)}),
    "inner levels every 2nd step": Way({"cache_steps": 2}),
    "inner levels every 3rd step": Way({"cache_steps": 3}),
    "inner levels every 5th step": Way({"cache_steps": 5}),
    "30 % of the tokens merged": Way({"merge_tokens": 0.3}),
    "50 % of the tokens merged": Way({"merge_tokens": 0.5}),
    "int8": Way(load={"int8": True}),
    "bfloat16": Way(load={"dtype": "bfloat16"}),
    "15 steps": Way({"steps": 15}),
    "10 steps": Way({"steps": 10}),
    "7 steps": Way({"steps": 7}),
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "judge", help="folder of the classifier")
    parser.add_argument("--subset", default="common", help="the concepts that the model was trained on")
    parser.add_argument("--guidance", type=float, default=2.0, help="classifier-free guidance")
    parser.add_argument("--limit", type=int, help="at most so many prompts")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="which ways beside exactly")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "approximate", help="folder for the results")
    return parser.parse_args()


def draw(model: reverie.Pipeline, asked: Sequence[Prompt], request: reverie.TextToImage) -> list[Image.Image]:
    """Draw a picture of each prompt from the prompt's own seed, one by one, as users do."""
    numbers = track(range(len(asked)), "drawing")
    return [model.draw(request.replace(prompt=asked[k].text, seed=asked[k].seed))[0] for k in numbers]


def measured(
    asked: Sequence[Prompt], judge: Judge, pictures: Sequence[Image.Image], exact: Sequence[Image.Image]
) -> dict[str, float]:
    """Tell how often the judge finds what was asked for, and how far the pictures are from the exact ones."""
    drawn = [Drawn(*row) for row in zip(asked, pictures, judge(pictures), strict=True)]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(exact, pictures, strict=True)]
    distances = [psnr(a, b) for a, b in pairs if not np.array_equal(a, b)]
    return {
        "right": share([one.right for one in drawn]),
        "psnr": sum(distances) / len(distances) if distances else np.inf,
    }


def main() -> None:
    """Draw the same prompts in every way, and write a table and JSON."""
    options = arguments()
    torch.set_num_threads(1)  # processor time is then told apart from what others use
    things = concepts(options.subset)
    sets = {group.key: group.prompts for group in prompt_sets(things, 100)}
    asked = spread([*sets["concepts"], *sets["held-out"]], options.limit)
    judge, request = Judge(*load_classifier(options.judge)), reverie.TextToImage(seed=0, guidance=options.guidance)
    exact: list[Image.Image] = []
    results = {}
    for name in dict.fromkeys(["exact", *(options.ways or WAYS)]):
        model, asked_for = reverie.load(device="cpu", **WAYS[name].load), request.replace(**WAYS[name].request)
        draw(model, asked[:1], asked_for)  # warm
        start = time.process_time()
        pictures = draw(model, asked, asked_for)
        taken = (time.process_time() - start) / len(asked)
        exact = exact or pictures
        results[name] = {"seconds": taken} | measured(asked, judge, pictures, exact)
        print(name, results[name], file=sys.stderr, flush=True)
    write(results, len(asked), options.out)


def write(results: dict[str, dict[str, float]], count: int, folder: Path) -> None:
    """Print a table, and write it and the figures."""
    first = results["exact"]["seconds"]
    lines = [
        "| | processor time a picture | times as fast | judge finds it | PSNR to exact |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, told in results.items():
        distance = "" if np.isinf(told["psnr"]) else f"{told['psnr']:.1f} dB"
        took = f"{1000 * told['seconds']:.0f} ms | {first / told['seconds']:.2f}"
        lines.append(f"| {name} | {took} | {told['right']:.1f} % | {distance} |")
    described = ", ".join(f"{name} {value}" for name, value in machine().items())
    table = "\n".join(lines) + f"\n\nBundled model, {count} prompts, one thread. {described}.\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "approximate.md").write_text(table, encoding="utf-8")
    (folder / "approximate.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
