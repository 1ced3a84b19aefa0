"""Several models beside each other, in one run, by a judge with ImageNet's eyes: what of the ceiling does each reach?

The judge (a linear layer on ImageNet features, recipes/honest-judge.toml) names the things in drawn pictures. The
ceiling is what it finds in real scenes that went through a model's own autoencoder. KID and the Fréchet distance on the
same features tell how near the drawn pictures are to the scenes of the same prompts. Needs the extra `train`, the font,
CLDR's names and the drawings of `corpora.drawings`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import reverie
from figures import SEED, Prompt, found, frechet_distance, kernel_distance, psnr, share, spread
from quality import ASSETS, ROOT, draw, keep, pictures_of
from reverie.codecs.image import to_tensor
from reverie.corpora.captions import chinese, english, with_article
from reverie.corpora.concepts import Concept, concepts
from reverie.corpora.scenes import COLOURS, DEFAULT_GROUND, TINTS, Scene, colour_of, own_colour, scene_at
from reverie.pipeline import Pipeline
from reverie.train.probe import Probe, load_probe
from sheets import contact_sheet

PAIRS = 100
BATCH = 16
WHITE_NOISE = 40  # grey levels either side of a white ground


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure models beside each other, as shares of the judge's ceiling.")
    parser.add_argument("models", nargs="*", type=Path, default=[ASSETS / "bundled"], help="folders; the first is 1")
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "judge", help="folder of the probe")
    parser.add_argument("--subset", default="everyday", help="the things that are asked for")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of the first things")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (what each model recommends)")
    parser.add_argument("--limit", type=int, help="at most so many prompts of a kind")
    parser.add_argument("--kinds", nargs="*", help="which prompts: named, bare, coloured, chinese, pairs (all)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "beside", help="folder for the table and the sheets")
    return parser.parse_args()


def main() -> int:
    """Measure each model, telling each figure as it comes; write beside.json; return the exit status."""
    options = arguments()
    torch.set_num_threads(1)
    judge, names = load_probe(options.judge)
    asked = {
        kind: spread(prompts, options.limit)
        for kind, prompts in prompt_kinds(concepts(options.subset)[options.skip :]).items()
        if options.kinds is None or kind in options.kinds
    }
    table = {}
    for folder in options.models:
        table[str(folder)] = dict(told(folder, measured(folder, asked, judge, names, options)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "beside.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0


def told(folder: Path, figures: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Pass figures on and print them."""
    for name, value in figures:
        print(f"{folder.name}\t{name}\t{value:.4g}", flush=True)
        yield name, value


def prompt_kinds(things: Sequence[Concept]) -> dict[str, list[Prompt]]:
    """Return what is asked for: a thing on a named ground, on none, in a colour, in Chinese; pairs; in the middle."""
    named = [scene_at((thing,), SEED, i, pair_share=0, scatter=0) for i, thing in enumerate(things)]
    plain = [replace(scene, colour=DEFAULT_GROUND, rgb=COLOURS[DEFAULT_GROUND][1]) for scene in named]
    coloured = [scene for scene in map(_recoloured, plain, cycle(TINTS)) if scene.tint]
    pairs = [scene_at(things, SEED, i, pair_share=1, scatter=0) for i in range(PAIRS)]
    return {
        "named": [_prompt(scene, i, english) for i, scene in enumerate(named)],
        "bare": [
            Prompt(with_article(scene.objects[0].concept.en[-1]), scene, SEED + i) for i, scene in enumerate(plain)
        ],
        "coloured": [
            Prompt(with_article(f"{scene.tint} {scene.objects[0].concept.en[-1]}"), scene, SEED + i)
            for i, scene in enumerate(coloured)
        ],
        "chinese": [_prompt(scene, i, chinese) for i, scene in enumerate(named)],
        "pairs": [_prompt(scene, i, english) for i, scene in enumerate(pairs)],
    }


def measured(
    folder: Path, asked: dict[str, Sequence[Prompt]], judge: Probe, names: Sequence[str], options: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    """Yield a model's figures: ceilings, shares of them, distances, the autoencoder's dB and seconds a picture."""
    model = reverie.load(folder, device="cpu")
    options = argparse.Namespace(**vars(options) | {"guidance": options.guidance or model.guidance})
    for kind, prompts in asked.items():
        known = [prompt for prompt in prompts if _knows(model, prompt.scene)]
        real = pictures_of([prompt.scene for prompt in known], model.size)
        coded = [picture for one in real for picture in model.codec.pictures(model.codec.encode([one]))]
        start = time.process_time()
        drawn = draw(model, known, options)
        seconds = (time.process_time() - start) / len(drawn)
        seen = {what: features(judge, pictures) for what, pictures in _three(real, coded, drawn)}
        rates = {what: rate(judge, names, rows, known) for what, rows in seen.items()}
        yield f"{kind}: pictures", len(known)
        yield f"{kind}: real scenes, %", rates["real"]
        yield f"{kind}: ceiling (scenes through the autoencoder), %", rates["coded"]
        yield f"{kind}: drawn, %", rates["drawn"]
        yield f"{kind}: share of the ceiling", rates["drawn"] / rates["coded"]
        if kind == "coloured":
            for what, pictures in _three(real, coded, drawn):
                hits = [colour_on_white(p) == asked.scene.tint for p, asked in zip(pictures, known, strict=True)]
                yield f"{kind}: {what} in the colour asked for, on white, %", share(hits)
        yield f"{kind}: KID x 1000", 1000 * kernel_distance(seen["drawn"], seen["real"])
        yield f"{kind}: Fréchet distance", frechet_distance(seen["drawn"], seen["real"])
        decibels = [psnr(np.asarray(a), np.asarray(b)) for a, b in zip(real, coded, strict=True)]
        yield f"{kind}: autoencoder, dB", sum(decibels) / len(decibels)
        yield f"{kind}: seconds of processor a picture", seconds
        cells = [(picture, prompt.text) for picture, prompt in zip(drawn, known, strict=True)]
        keep(contact_sheet(cells[::4]), options.out / f"{folder.name}-{kind}.png")


def _three(
    real: list[Image.Image], coded: list[Image.Image], drawn: list[Image.Image]
) -> list[tuple[str, list[Image.Image]]]:
    return [("real", real), ("coded", coded), ("drawn", drawn)]


def features(judge: Probe, pictures: Sequence[Image.Image]) -> Float[Tensor, "n 1280"]:
    """Return the ImageNet features of pictures."""
    batches = range(0, len(pictures), BATCH)
    return torch.cat([judge.features(to_tensor(pictures[start : start + BATCH])) for start in batches])


def rate(judge: Probe, names: Sequence[str], rows: Float[Tensor, "n 1280"], asked: Sequence[Prompt]) -> float:
    """Return in how many per cent of pictures the judge finds all that was asked for."""
    best = judge(rows).topk(2).indices.tolist()
    hits = [found(one.scene, [names[i] for i in two]) for one, two in zip(asked, best, strict=True)]
    return share(hits)


def colour_on_white(picture: Image.Image) -> str:
    """Return the colour of what stands on a white ground, see `colour_of`; "" where the ground is not white."""
    rgb = np.asarray(picture, np.float32)
    stands = np.abs(rgb - COLOURS[DEFAULT_GROUND][1]).max(-1, keepdims=True) > WHITE_NOISE
    if stands[0].mean() > 0.5:
        return ""
    alpha = stands.astype(np.float32)
    return colour_of(np.concatenate([rgb * alpha, alpha], -1))


def _recoloured(scene: Scene, colour: str) -> Scene:
    """Recolour a scene's thing, where it has a colour and is not called by one."""
    thing = scene.objects[0].concept
    named = any(word in COLOURS for name in thing.en for word in name.split())
    return scene if named or own_colour(thing.emoji) in ("", colour) else replace(scene, tint=colour)


def _knows(model: Pipeline, scene: Scene) -> bool:
    known = {thing.emoji for thing in model.known}
    return all(placed.concept.emoji in known for placed in scene.objects)


def _prompt(scene: Scene, number: int, tell: Callable[[Scene, np.random.Generator, int], str]) -> Prompt:
    always = 10**6  # one caption in so many would leave the ground out
    return Prompt(tell(scene, np.random.default_rng((SEED, number)), always), scene, SEED + number)


if __name__ == "__main__":
    sys.exit(main())
