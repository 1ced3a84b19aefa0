"""What can a loaded model be asked for? The object that `reverie.load` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from reverie import system
from reverie.generate import image
from reverie.generate.image import Progress
from reverie.generate.requests import SamplerName, ScheduleName, TextToImage
from reverie.system import StableDiffusion


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Pipeline(StableDiffusion):
    """Draw pictures with a model."""

    def text_to_image(
        self,
        prompt: str = "",
        *,
        negative: str = "",
        seed: int | None = None,
        steps: int = 20,
        guidance: float = 5.0,
        width: int | None = None,
        height: int | None = None,
        count: int = 1,
        sampler: SamplerName = "dpmpp_2m",
        schedule: ScheduleName = "karras",
        guidance_rescale: float = 0.0,
        threshold: float | None = None,
    ) -> list[Image.Image]:
        """Draw pictures of a prompt; the arguments are the fields of `TextToImage`.

        Each picture's `.info` holds the request that makes it alone. Raises ReverieError for values out of range.
        """
        request = TextToImage(
            prompt=prompt,
            negative=negative,
            seed=seed,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            count=count,
            sampler=sampler,
            schedule=schedule,
            guidance_rescale=guidance_rescale,
            threshold=threshold,
        )
        return self.draw(request)

    def draw(self, request: TextToImage) -> list[Image.Image]:
        """Draw the pictures that a request asks for, in order."""
        return [picture for progress in self.stream(request) for picture in progress.pictures]

    def stream(self, request: TextToImage) -> Iterator[Progress]:
        """Draw and report every step, with previews; stop by closing the generator. See `generate.image.stream`."""
        return image.stream(self, request)


def load(
    path: str | Path | None = None, *, device: str | torch.device = "auto", dtype: str | torch.dtype | None = None
) -> Pipeline:
    """Load a model to draw with: the bundled one where no path is given, else a folder in diffusers' layout.

    `device` "auto" takes a GPU where there is one. `dtype` None is float16 on CUDA and float32 elsewhere, whatever the
    files hold. Raises ReverieError where there is no model or it is damaged.
    """
    return Pipeline(**vars(system.load(path, device=device, dtype=dtype)))
