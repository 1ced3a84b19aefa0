"""How even is a film to the eye? Its largest step in medians, placed evenly and paced, on ten pairs of prompts.

    python benchmarks/pacing.py --model FOLDER

Each film goes from one prompt to another, as `reverie animate` draws it. Steps are angles between the features of the
bundled CLIP. The table gives the largest step in medians of both placings, and how many pictures were drawn in all to
find the paced one's places, in films. With the bundled model it takes about three minutes of two quiet cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise

from PIL import Image

import reverie
from reverie.animation.draw import Frame
from reverie.animation.pacing import angle, unevenness
from reverie.requests.films import Animation
from reverie.similarity.embed import load_clip

PAIRS = (
    ("a bear", "an apple"),
    ("a panda", "a penguin"),
    ("a rocket", "a sailboat"),
    ("a sunflower", "a cactus"),
    ("a pizza", "a star"),
    ("a fish", "a butterfly"),
    ("a house", "a gift"),
    ("a heart", "a balloon"),
    ("a car", "a bicycle"),
    ("a snowman", "a ghost"),
)


class Kept(dict[float, Image.Image]):
    """Keep every picture that was drawn, by its place."""

    def put(self, drawn: Mapping[float, Image.Image]) -> None:
        """Keep the pictures of a batch."""
        self.update(drawn)


def main() -> None:
    """Measure, and print a table in Markdown."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--frames", type=int, default=12)
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--guidance", type=float, default=3.0)
    options.add_argument("--pairs", type=int, default=len(PAIRS))
    chosen = options.parse_args()
    system, distance = reverie.load(chosen.model), angle(load_clip(device="cpu").embed_images)

    def uneven(frames: Iterable[Frame]) -> float:
        pictures = [frame.picture for frame in frames]
        return unevenness([distance(a, b) for a, b in pairwise(pictures)])

    print(f"{chosen.frames} frames of {chosen.steps} steps, guidance {chosen.guidance:g}, {system.size} px\n")
    print("| film | evenly placed | paced | films drawn |\n|---|---|---|---|")
    rows = []
    for pair in PAIRS[: chosen.pairs]:
        told = {"frames": chosen.frames, "steps": chosen.steps, "guidance": chosen.guidance, "seed": 1}
        film, kept = Animation.of({"keyframes": pair, **told}), Kept()
        even = uneven(system.animate(film))
        paced = uneven(system.animate(film.replace(pace="perceptual"), distance=distance, store=kept))
        rows.append((even, paced, len(kept) / chosen.frames))
        print(f"| {pair[0]} to {pair[1]} | {even:.2f} | {paced:.2f} | {rows[-1][2]:.1f} |")
        sys.stdout.flush()
    for name, pick in (("median", statistics.median), ("worst", max)):
        even, paced, films = (pick(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {even:.2f} | {paced:.2f} | {films:.1f} |")


if __name__ == "__main__":
    main()
