"""How well does a picture come back from the noise found for it? Decibels of each inversion, with and without guidance.

    python benchmarks/inversion.py --model FOLDER

The pictures are held-out scenes of the emoji corpus. Each is inverted with its caption and drawn again; the table gives
the peak signal-to-noise ratio of what is drawn against what the autoencoder alone makes of the picture, which no
inversion can better, the worst of all pictures, and how often the U-Net was asked there and back. With the bundled
model it takes about two minutes of two quiet cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from time import perf_counter

import numpy as np
import torch
from PIL import Image

import reverie
from reverie.animation.blend import invert_picture
from reverie.corpora.captions import caption, telling
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.diffusion.inversion import INVERTERS
from reverie.diffusion.noise import Noise
from reverie.diffusion.schedule import to_vp
from reverie.generate import conditioning
from reverie.generate.sample import guided_denoiser, noise_levels
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage

SEED = 20_000  # no recipe draws from it


def decibels(a: Image.Image, b: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures; 99 for equal ones."""
    error = np.square(np.asarray(a, dtype=float) - np.asarray(b.convert("RGB"), dtype=float)).mean()
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def drawn_again(
    system: Pipeline, request: TextToImage, picture: Image.Image, inversion: str
) -> tuple[Image.Image, int]:
    """Invert a picture and draw it again; count the denoiser's evaluations of the U-Net."""
    prompts, sigmas = conditioning.encode(system, request), noise_levels(system, request)
    calls = 0

    def counted(module: torch.nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1

    hook = system.unet.register_forward_pre_hook(counted)
    start = invert_picture(system, system.codec, request, prompts, sigmas, picture, inversion)
    denoise = guided_denoiser(system, request, prompts, sigmas)
    noise = Noise([0], start.x.shape[1:], system.device)
    with torch.no_grad():
        for step in INVERTERS[inversion].down(denoise, start.x, sigmas, noise, start.past):
            latents = step.x
    hook.remove()
    return system.codec.pictures(to_vp(latents, sigmas[-1].item()))[0], calls


def main() -> None:
    """Measure, and print a table in Markdown."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model")
    options.add_argument("--pictures", type=int, default=8)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    chosen = options.parse_args()
    system, things = reverie.load(chosen.model), concepts("basic")
    scenes = [(index, scene_at(things, SEED, index, pair_share=0)) for index in range(chosen.pictures)]
    size = (system.size, system.size)
    pictures = [Image.fromarray(render(scene)).resize(size) for _, scene in scenes]
    prompts = [caption(scene, telling(SEED, index)) for index, scene in scenes]
    ceilings = [system.codec.pictures(system.codec.encode([picture]))[0] for picture in pictures]
    own = statistics.mean(decibels(a, b) for a, b in zip(ceilings, pictures, strict=True))
    print(f"{chosen.pictures} pictures of {system.size} px, {chosen.steps} steps; autoencoder alone {own:.1f} dB\n")
    print("| inversion | guidance | dB, mean | dB, worst | U-Net calls | seconds a picture |")
    print("|---|---|---|---|---|---|")
    for guidance in chosen.guidance:
        for name in INVERTERS:
            began, found, calls = perf_counter(), [], 0
            for prompt, picture, ceiling in zip(prompts, pictures, ceilings, strict=True):
                request = TextToImage(
                    prompt=prompt, seed=0, steps=chosen.steps, guidance=guidance, width=size[0], height=size[1]
                )
                again, calls = drawn_again(system, request, picture, name)
                found.append(decibels(again, ceiling))
            seconds = (perf_counter() - began) / len(pictures)
            mean, worst = statistics.mean(found), min(found)
            print(f"| {name} | {guidance:g} | {mean:.1f} | {worst:.1f} | {calls} | {seconds:.1f} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
