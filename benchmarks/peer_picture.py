"""What does the peer do for one prompt? diffusers from a model folder to a picture file, as its documentation shows.

Run as a script it is the cold side of the benchmark: `python peer_picture.py FOLDER FILE STEPS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

PROMPT = "a bear on a blue background"
GUIDANCE = 5.0


def load(folder: Path) -> StableDiffusionPipeline:
    """Load a folder in float32 with the sampler that reverie uses by default."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, file: Path, steps: int) -> None:
    """Draw the prompt into a file."""
    generator = torch.Generator("cpu").manual_seed(7)
    picture = pipeline(PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generator).images[0]
    picture.save(file)


if __name__ == "__main__":
    draw(load(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]))
