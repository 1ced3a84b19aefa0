"""How many frames a second does a film come to, beside each frame drawn alone by diffusers with as many steps?

Both go from prompt to prompt with the same model, sampler, levels and noise. The peer is given the frames'
interpolated embeddings ready-made; ours counts all that `animate` does. They alternate in one run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import architectures
import peer_picture
import reverie
from measure import GUIDANCE, Row, alternate, machine, seconds
from report import markdown
from reverie.diffusion.noise import slerp
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation

PROMPTS = ("a bear", "an apple")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="folder in diffusers' layout; SD 1.5 of an eighth the width if not given"
    )
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--anchor", type=float, action="append", help="several times for several rows (0.2 and 0)")
    parser.add_argument("--batch", type=int, action="append", help="several times for several rows (4)")
    parser.add_argument("--in-between", type=int, default=0)
    return parser.parse_args()


def film(system: Pipeline, options: argparse.Namespace, anchor: float, batch: int) -> None:
    """Draw our film and let its frames go."""
    told = {"keyframes": PROMPTS, "frames": options.frames, "steps": options.steps, "in_between": options.in_between}
    request = Animation.of({**told, "guidance": GUIDANCE, "anchor": anchor, "seed": 7})
    assert sum(1 for _ in system.animate(request, batch=batch)) == options.frames


def alone(pipeline: Any, embeddings: list[torch.Tensor], negative: torch.Tensor, steps: int) -> None:
    """Draw each frame by itself with the peer."""
    for embedding in embeddings:
        pipeline(
            prompt_embeds=embedding,
            negative_prompt_embeds=negative,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(7),
        )


def main() -> None:
    """Measure a row for each anchor and batch."""
    options, rows = arguments(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model
        if folder is None:
            folder = Path(scratch) / "model"
            architectures.build(architectures.ARCHITECTURES["SD 1.5"], architectures.Scale()).save(folder)
        system, pipeline = reverie.load(folder, device="cpu", dtype="float32"), peer_picture.load(folder)
    first, last = (system.encode_prompt([prompt]).tokens for prompt in PROMPTS)
    negative = system.encode_negative([""]).tokens
    embeddings = [slerp(first, last, index / (options.frames - 1)) for index in range(options.frames)]
    for anchor in options.anchor or [0.2, 0.0]:
        for batch in options.batch or [4]:
            times = alternate(
                partial(seconds, partial(film, system, options, anchor, batch)),
                partial(seconds, partial(alone, pipeline, embeddings, negative, options.steps)),
                options.rounds,
            )
            row = Row(f"{options.frames} frames, anchor {anchor:g}, batches of {batch}", "s", *times)
            fps = [options.frames / min(side) for side in (row.ours, row.theirs)]
            row.note = (
                f"{fps[0]:.2f} frames a second against {fps[1]:.2f}: {fps[0] / fps[1]:.2f} times as fast (best of each)"
            )
            print(row.note, file=sys.stderr, flush=True)
            rows.append(row)
    print(markdown(rows, machine()))


if __name__ == "__main__":
    main()
