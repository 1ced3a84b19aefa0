"""How long from a model's files to the first denoised latents? Prints the seconds, imports apart.

`python first_step.py reverie|diffusers FOLDER PIXELS`: loads, encodes the prompt and takes one step, in this process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import GUIDANCE, PROMPT

STEPS = 4  # asked for; one is taken
Step = Callable[[Path, int], None]


def reverie_step() -> Step:
    """Import reverie and return how it loads a folder and takes a step."""
    import reverie
    from reverie.requests.pictures import TextToImage

    def step(folder: Path, pixels: int) -> None:
        asked = {"prompt": PROMPT, "guidance": GUIDANCE, "steps": STEPS, "width": pixels, "height": pixels, "seed": 7}
        next(reverie.load(folder, device="cpu", dtype="float32").stream(TextToImage.of(asked)))

    return step


def diffusers_step() -> Step:
    """Import diffusers and return how it does."""
    from peer_picture import draw, load

    class Taken(Exception):
        """Say that a step was taken."""

    def stop(*_: Any) -> dict[str, Any]:
        raise Taken

    def step(folder: Path, pixels: int) -> None:
        try:
            draw(load(folder), STEPS, pixels, callback_on_step_end=stop)
        except Taken:
            return

    return step


SIDES = {"reverie": reverie_step, "diffusers": diffusers_step}

if __name__ == "__main__":
    taken = SIDES[sys.argv[1]]()
    start = time.perf_counter()
    taken(Path(sys.argv[2]), int(sys.argv[3]))
    print(time.perf_counter() - start)
