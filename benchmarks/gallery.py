"""Sheets of what bundled models draw, beside each other: every so-many-th thing, and what a newcomer would type.

Nothing is chosen: one seed, pictures as they come.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import reverie
from quality import ASSETS, ROOT
from reverie.corpora.captions import with_article
from reverie.corpora.scenes import COLOURS
from reverie.media.pictures import grid, save
from reverie.pipeline import Pipeline
from sheets import contact_sheet

SEED = 7
NEWCOMERS = (
    "a cat",
    "a dog",
    "a bear",
    "an apple next to a book",
    "a red car",
    "a house and a tree",
    "a green heart",
    "a bird on a blue background",
    "一只熊猫",
    "music",
    "a princess",
    "a blue bear",
)


def main() -> int:
    """Draw the sheets of each model; return the exit status."""
    parser = argparse.ArgumentParser(description="Draw sheets of what models draw.")
    parser.add_argument("models", nargs="*", type=Path, default=[ASSETS / "bundled"], help="folders")
    parser.add_argument("--every", type=int, default=5, help="draw every so-many-th thing of the first model")
    parser.add_argument("--columns", type=int, default=13)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gallery", help="folder for the sheets")
    options = parser.parse_args()
    models = [reverie.load(folder, device="cpu") for folder in options.models]
    things = models[0].known[:: options.every]
    grounds = list(COLOURS)
    names = [
        f"{with_article(thing.en[-1])} on {with_article(grounds[i % len(grounds)])} background"
        for i, thing in enumerate(things)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for folder, model in zip(options.models, models, strict=True):
        save(grid(drawn(model, names), options.columns), options.out / f"{folder.name}-names.png")
        cells = [(picture, text) for picture, text in zip(drawn(model, NEWCOMERS), NEWCOMERS, strict=True)]
        save(contact_sheet(cells, columns=6), options.out / f"{folder.name}-newcomers.png")
    return 0


def drawn(model: Pipeline, prompts: Sequence[str]) -> list[Image.Image]:
    """Draw one picture of each prompt, all from one seed."""
    return [model.text_to_image(prompt, seed=SEED)[0] for prompt in prompts]


if __name__ == "__main__":
    sys.exit(main())
