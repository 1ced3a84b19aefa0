"""What of a picture is in its variation? Scenes as pictures to vary beside the same in words, by beside.py's judge.

The same things, seeds and steps. Writes a sheet: what was shown, what its words draw, and its variation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

import reverie
from beside import features, prompt_kinds, rate
from figures import Prompt, ground_colour, kernel_distance, share, spread
from quality import ASSETS, ROOT, draw, pictures_of
from reverie.corpora.concepts import concepts
from reverie.media.pictures import grid, save
from reverie.pipeline import Pipeline
from reverie.requests.parts import IPAdapterInput
from reverie.train.probe import load_probe

EVERY, COLUMNS, SIDE = 2, 12, 96  # of the things on the sheet, pictures in its rows, and their pixels


def main() -> int:
    """Print the table, write the sheet, return the exit status."""
    parser = argparse.ArgumentParser(description="Measure variations of pictures beside pictures of their words.")
    parser.add_argument("--model", type=Path, default=ASSETS / "bundled", help="folder in diffusers' layout")
    parser.add_argument("--adapter", type=Path, help="IP-Adapter to show them by (the model's own)")
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "judge", help="folder of the probe")
    parser.add_argument("--subset", default="everyday", help="the things that are shown")
    parser.add_argument("--limit", type=int, default=52, help="at most so many things")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of a picture")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (what the model recommends)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "varied.png", help="the sheet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, (judge, names) = reverie.load(options.model, device="cpu"), load_probe(options.judge)
    options.guidance = options.guidance or model.guidance
    asked = spread(prompt_kinds(concepts(options.subset))["named"], options.limit)
    real = pictures_of([prompt.scene for prompt in asked], model.size)
    rows = {
        "scenes through the autoencoder": model.codec.pictures(model.codec.encode(real)),
        "words": draw(model, asked, options),
        "pictures": varied(model, asked, real, options),
    }
    scenes = features(judge, real)
    print("| drawn of | judge finds | ground | KID x 1000 |\n|---|---:|---:|---:|")
    for name, pictures in rows.items():
        seen = features(judge, pictures)
        grounds = [ground_colour(one) == prompt.scene.colour for one, prompt in zip(pictures, asked, strict=True)]
        figures = rate(judge, names, seen, asked), share(grounds), 1000 * kernel_distance(seen, scenes)
        print("| {} | {:.1f} % | {:.0f} % | {:.0f} |".format(name, *figures), flush=True)
    triples = list(zip(real, rows["words"], rows["pictures"], strict=True))[::EVERY]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save(grid([one.resize((SIDE, SIDE)) for triple in triples for one in triple], columns=COLUMNS), options.out)
    return 0


def varied(
    model: Pipeline, asked: Sequence[Prompt], shown: Sequence[Image.Image], options: argparse.Namespace
) -> list[Image.Image]:
    """Draw a variation of each picture from its prompt's seed."""
    plain = reverie.TextToImage(steps=options.steps, guidance=options.guidance)
    pictures: list[Image.Image] = []
    for prompt, picture in zip(asked, shown, strict=True):
        seen: dict[str, object] = {"vary": [picture]}
        if options.adapter is not None:
            parts = {"model": str(options.adapter), "encoder": str(ASSETS / "clip")}
            seen = {"ip_adapters": [IPAdapterInput(**parts, images=(picture,))]}
        pictures += model.draw(plain.replace(seed=prompt.seed, **seen))
    return pictures


if __name__ == "__main__":
    sys.exit(main())
