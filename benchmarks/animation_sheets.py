"""What do films look like? The contact sheets and the GIF of docs/guide/animation.md and the README, drawn by a model.

    python benchmarks/animation_sheets.py --model FOLDER --out docs/images

From a bear to an apple, evenly placed and paced; a loop through four prompts, as a sheet and as a GIF; and two scenes
that no training has seen, rendered from emoji, one becoming the other. Takes a few minutes of two quiet cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

import reverie
from inversion import decibels
from reverie import video
from reverie.animation.pacing import angle
from reverie.corpora.captions import caption, telling
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation, Keyframe
from reverie.similarity.embed import load_clip

SEED = 20_000  # of scenes: no recipe draws from it
COLUMNS = 8
SHOWN = 128  # pixels of a frame on a sheet
GIF_BYTES = 300_000  # that a README should load
LOOP = ("a bear", "an apple", "a rocket", "a star")


def drawn(system: Pipeline, told: dict[str, Any], paced: bool = False) -> list[Image.Image]:
    """Draw a film and tell how long that took."""
    began, distance = perf_counter(), angle(load_clip(device="cpu").embed_images) if paced else None
    film = Animation.of({**told, "pace": "perceptual" if paced else "uniform"})
    pictures = [frame.picture for frame in system.animate(film, distance=distance)]
    print(f"{len(pictures)} frames in {perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return pictures


def scenes(size: int, indices: Sequence[int]) -> list[Keyframe]:
    """Render scenes of the emoji corpus, one thing on each, as keyframes with their captions."""
    things, found = concepts("basic"), []
    for index in indices:
        scene = scene_at(things, SEED, index, pair_share=0)
        picture = Image.fromarray(render(scene)).resize((size, size), Image.Resampling.LANCZOS)
        found.append(Keyframe.of({"image": picture, "prompt": caption(scene, telling(SEED, index))}))
    return found


def main() -> None:
    """Draw all of them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--out", type=Path, default=Path("docs/images"))
    options.add_argument("--steps", type=int, default=16)
    options.add_argument("--guidance", type=float, default=3.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--loop-frames", type=int, default=40)
    options.add_argument("--scenes", type=int, nargs=2, default=(0, 1), help="which two scenes become one another")
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    system = reverie.load(chosen.model)
    told = {"steps": chosen.steps, "guidance": chosen.guidance, "seed": chosen.seed}

    def sheet(name: str, pictures: Sequence[Image.Image]) -> None:
        small = [picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS) for picture in pictures]
        reverie.save(reverie.grid(small, COLUMNS), chosen.out / f"animation-{name}.png")

    classic = {**told, "keyframes": LOOP[:2], "frames": 2 * COLUMNS}
    sheet("bear-apple", drawn(system, classic))
    sheet("bear-apple-paced", drawn(system, classic, paced=True))
    loop = drawn(system, {**told, "keyframes": LOOP, "frames": chosen.loop_frames, "loop": True})
    sheet("loop", loop[:: max(1, len(loop) // (2 * COLUMNS))])
    gif = chosen.out / "animation-loop.gif"
    video.write(loop, gif, 12)
    print(f"{gif}: {gif.stat().st_size} bytes", file=sys.stderr)
    if gif.stat().st_size > GIF_BYTES:
        raise SystemExit(f"{gif} is too large for a README; draw fewer --loop-frames")
    ends = scenes(system.size, chosen.scenes)
    morph = drawn(system, {**told, "guidance": 1, "keyframes": ends, "frames": 2 * COLUMNS}, paced=True)
    sheet("pictures", morph)
    for end, shown in ((ends[0], morph[0]), (ends[1], morph[-1])):
        picture = end.image.image() if end.image is not None else shown
        through = system.codec.pictures(system.codec.encode([picture]))[0]
        print(
            f"{end.prompt}: {decibels(shown, through):.1f} dB to the autoencoder's, {decibels(shown, picture):.1f} dB"
        )


if __name__ == "__main__":
    main()
