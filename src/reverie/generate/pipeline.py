"""What can a loaded model be asked for? The object that `reverie.load` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from PIL import Image

from reverie import system
from reverie.generate import image
from reverie.generate.image import Progress, Show
from reverie.generate.options import (
    ImageToImageOptions,
    InpaintOptions,
    OutpaintOptions,
    PictureLike,
    TextToImageOptions,
)
from reverie.generate.requests import ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.system import StableDiffusion


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Pipeline(StableDiffusion):
    """Draw pictures with a model.

    Each method asks for one kind of request, whose fields are its options, and raises ReverieError for values out of
    range. Each picture's `.info` holds the request that makes it alone.
    """

    def text_to_image(self, prompt: str = "", **options: Unpack[TextToImageOptions]) -> list[Image.Image]:
        """Draw pictures of a prompt; the options are the fields of `TextToImage`."""
        return self.draw(TextToImage.of({"prompt": prompt, **options}))

    def image_to_image(
        self, prompt: str, init: PictureLike, **options: Unpack[ImageToImageOptions]
    ) -> list[Image.Image]:
        """Draw a picture anew; the options are the fields of `ImageToImage`."""
        return self.draw(ImageToImage.of({"prompt": prompt, "init": init, **options}))

    def inpaint(
        self, prompt: str, init: PictureLike, mask: PictureLike | None = None, **options: Unpack[InpaintOptions]
    ) -> list[Image.Image]:
        """Paint anew what a mask shows in white, or what is transparent; the options are the fields of `Inpaint`."""
        return self.draw(Inpaint.of({"prompt": prompt, "init": init, "mask": mask, **options}))

    def outpaint(self, prompt: str, init: PictureLike, **options: Unpack[OutpaintOptions]) -> list[Image.Image]:
        """Continue a picture beyond its edges; the options are the fields of `Outpaint`."""
        return self.draw(Outpaint.of({"prompt": prompt, "init": init, **options}))

    def draw(self, request: TextToImage) -> list[Image.Image]:
        """Draw the pictures that a request asks for, in order."""
        return [picture for progress in self.stream(request) for picture in progress.pictures]

    def stream(self, request: TextToImage, preview: Show | None = None) -> Iterator[Progress]:
        """Draw and report every step, with previews; stop by closing the generator. See `generate.image.stream`.

        A refiner that the request names is loaded first.
        """
        refiner = None
        if request.refiner is not None:
            refiner = system.load(request.refiner.model, device=self.device, dtype=self.dtype)
        return image.stream(self, request, refiner=refiner, preview=preview)


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    config: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
) -> Pipeline:
    """Load a model to draw with: the bundled one where no path is given, else a folder, a file or a name on the hub.

    `device` "auto" takes a GPU where there is one. `dtype` None is float16 on CUDA and float32 elsewhere, whatever the
    files hold. `vae` is an autoencoder to put in place of the model's. See `system.load`. Raises ReverieError where
    there is no model or it is damaged.
    """
    loaded = system.load(path, device=device, dtype=dtype, config=config, revision=revision, variant=variant, vae=vae)
    return Pipeline(**vars(loaded))
