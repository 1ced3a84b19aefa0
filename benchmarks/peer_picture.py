"""What does the peer do for one prompt? diffusers from a model folder to a picture file, as its documentation shows.

Run as a script it is the cold side of the benchmark: `python peer_picture.py FOLDER FILE STEPS PIXELS`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from measure import GUIDANCE, PROMPT


def load(folder: Path) -> StableDiffusionPipeline:
    """Load a folder in float32 with the sampler that reverie uses by default."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, steps: int, pixels: int, **options: Any) -> Image.Image:
    """Draw the prompt."""
    asked = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "height": pixels, "width": pixels, **options}
    return pipeline(PROMPT, generator=torch.Generator("cpu").manual_seed(7), **asked).images[0]


if __name__ == "__main__":
    draw(load(Path(sys.argv[1])), int(sys.argv[3]), int(sys.argv[4])).save(sys.argv[2])
