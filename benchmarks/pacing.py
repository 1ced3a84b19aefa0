"""How even is a film to the eye? Its largest step in medians, placed evenly and paced, on ten pairs of prompts.

    python benchmarks/pacing.py --model FOLDER --frames 24 --steps 10

Each film goes from one prompt to another as the reference does, embeddings by slerp from the same noise. Steps are
angles between the features of the bundled CLIP. The table gives the largest step in medians of both placings, and how
many pictures were drawn in all to find the paced one's places, in films.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise

from PIL import Image

import reverie
from reverie.animation.distances import angle
from reverie.animation.pacing import pace, unevenness, uniform
from reverie.diffusion.noise import Noise
from reverie.generate import conditioning
from reverie.generate.conditioning import steady
from reverie.generate.requests import TextToImage
from reverie.generate.sample import guided_denoiser, noise_levels, sample
from reverie.pipeline import Pipeline
from reverie.similarity.embed import load_clip

PAIRS = (
    ("a bear", "an apple"),
    ("a cat", "a dog"),
    ("a rocket", "a sailboat"),
    ("a tree", "a cactus"),
    ("a pizza", "the sun"),
    ("a fish", "a bird"),
    ("a house", "a castle"),
    ("a heart", "a rose"),
    ("a car", "a bicycle"),
    ("a pumpkin", "a ghost"),
)
ENDS = (0.0, 1.0)


Draw = Callable[[Sequence[float]], Iterator[Image.Image]]


def drawer(system: Pipeline, pair: tuple[str, str], request: TextToImage) -> Draw:
    """Return what draws the pictures of places from 0, the first prompt, to 1, the last; each place once."""
    first, last = (conditioning.encode(system, request.replace(prompt=prompt)) for prompt in pair)
    sigmas = noise_levels(system, request)
    shape = system.codec.latent_shape(request.width or 0, request.height or 0)

    @cache
    def drawn(place: float) -> Image.Image:
        towards = first.positive[0].at(0).slerp(last.positive[0].at(0), place)
        denoise = guided_denoiser(system, request, steady(towards, first.negative.at(0)), sigmas)
        for step in sample(denoise, sigmas, Noise([request.seed], shape, system.device), request.sampler):
            latents = step.x
        return system.codec.pictures(latents)[0]

    return lambda places: map(drawn, places)


def main() -> None:
    """Measure, and print a table in Markdown."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--frames", type=int, default=24)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--guidance", type=float, default=3.0)
    options.add_argument("--pairs", type=int, default=len(PAIRS))
    chosen = options.parse_args()
    system, distance = reverie.load(chosen.model), angle(load_clip(device="cpu").embed_images)
    size = {"width": system.size, "height": system.size}
    request = TextToImage.of({"seed": 1, "steps": chosen.steps, "guidance": chosen.guidance, **size})
    print(f"{chosen.frames} frames of {chosen.steps} steps, {system.size} px\n")
    print("| film | evenly placed | paced | films drawn |\n|---|---|---|---|")
    rows = []
    for pair in PAIRS[: chosen.pairs]:
        draw = drawer(system, pair, request)
        result = pace(draw, ENDS, chosen.frames, distance)
        even = list(draw(uniform(ENDS, chosen.frames)))
        steps = [distance(a, b) for a, b in pairwise(even)]
        rows.append((unevenness(steps), result.unevenness, result.drawn / chosen.frames))
        print(f"| {pair[0]} to {pair[1]} | {rows[-1][0]:.2f} | {rows[-1][1]:.2f} | {rows[-1][2]:.1f} |")
        sys.stdout.flush()
    columns = list(zip(*rows, strict=True))
    middle, worst = [statistics.median(column) for column in columns], [max(column) for column in columns]
    print(f"| median | {middle[0]:.2f} | {middle[1]:.2f} | {middle[2]:.1f} |")
    print(f"| worst | {worst[0]:.2f} | {worst[1]:.2f} | {worst[2]:.1f} |")


if __name__ == "__main__":
    main()
