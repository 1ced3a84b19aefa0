"""How does a request become pictures? Encode the prompt, sample, decode, and write the request into each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.diffusion.noise import Noise
from reverie.diffusion.step import Step
from reverie.generate.metadata import texts
from reverie.generate.requests import TextToImage
from reverie.generate.sample import guided_denoiser, noise_levels, sample
from reverie.system import Conditioning, StableDiffusion

GPU_BATCH = 4


@dataclass(frozen=True, eq=False)
class Progress:
    """Tell how far a request has come: it has taken step `index` of `total`, counted over all its pictures.

    `seeds` are those of the pictures at work, `latents` the sampler's present guess of them, clean and scaled, and
    `preview()` decodes it. `pictures` holds what this step finished: nothing, but in the last step of each picture.
    """

    index: int
    total: int
    seeds: tuple[int, ...]
    latents: Float[Tensor, "b c h w"]
    preview: Callable[[], list[Image.Image]]
    pictures: tuple[Image.Image, ...] = ()


def stream(system: StableDiffusion, request: TextToImage) -> Iterator[Progress]:
    """Draw a request's pictures and yield every step; closing the generator stops the work.

    Picture k is the one that seed + k alone gives. On the CPU it is so to the bit (at one thread count), because there
    the pictures are drawn one after another: kernels sum in another order for another batch, which moves the last bits
    and, over many steps, more. On a GPU, where a batch is worth it, up to GPU_BATCH are drawn together and agree with
    the pictures made alone but for rounding. Raises ReverieError, before any work, where the size does not fit.
    """
    request = sized(system, request)
    return _draw(system, request, 1 if system.device.type == "cpu" else GPU_BATCH)


def sized(system: StableDiffusion, request: TextToImage) -> TextToImage:
    """Fill in the model's own size where the request leaves it open. Raises ReverieError for one that does not fit."""
    width, height = request.width or system.size, request.height or system.size
    system.codec.latent_shape(width, height)
    return request.replace(width=width, height=height)


def _draw(system: StableDiffusion, request: TextToImage, batch: int) -> Iterator[Progress]:
    sigmas = noise_levels(system, request)
    positive = system.encode_prompt([request.prompt], width=request.width, height=request.height)
    negative = system.encode_negative([request.negative], width=request.width, height=request.height)
    starts = range(0, request.count, batch)
    steps, total = len(sigmas) - 1, (len(sigmas) - 1) * len(starts)
    for number, start in enumerate(starts):
        singles = [request.only(k) for k in range(start, min(start + batch, request.count))]
        seeds = tuple(single.seed for single in singles)
        for step in _steps(system, request, sigmas, seeds, positive, negative):
            decode = partial(system.codec.pictures, step.denoised)
            finished = _finished(system, singles, step) if step.index == steps - 1 else ()
            yield Progress(number * steps + step.index, total, seeds, step.denoised, decode, finished)


def _steps(
    system: StableDiffusion,
    request: TextToImage,
    sigmas: Tensor,
    seeds: tuple[int, ...],
    positive: Conditioning,
    negative: Conditioning,
) -> Iterator[Step]:
    shape = system.codec.latent_shape(request.width or 0, request.height or 0)
    noise = Noise(seeds, shape, system.device)
    denoise = guided_denoiser(system, request, positive.repeat(len(seeds)), negative.repeat(len(seeds)))
    return sample(denoise, sigmas, noise, request.sampler)


def _finished(system: StableDiffusion, singles: list[TextToImage], step: Step) -> tuple[Image.Image, ...]:
    """Decode the last step's latents, and give every picture the request that makes it alone."""
    pictures = system.codec.pictures(step.x)
    for picture, single in zip(pictures, singles, strict=True):
        picture.info.update(texts(single, system.name))
    return tuple(pictures)
