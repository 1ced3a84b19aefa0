"""From a request to pictures: encode the prompt, sample, decode, and write the request into each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.diffusion.step import Step
from reverie.generate import canvas
from reverie.generate.conditioning import adapter_notes
from reverie.generate.modified import Modification, in_turn, modify
from reverie.generate.notes import model_limits
from reverie.generate.picture_run import PictureRun, prepare_run
from reverie.progress import Progress
from reverie.requests.metadata import texts
from reverie.requests.pictures import TextToImage
from reverie.runtime.offload import offloader_of
from reverie.system import StableDiffusion

GPU_BATCH = 4

Show = Callable[[Tensor], list[Image.Image]]
"""Clean, scaled latents "b c h w" -> pictures: a decoder, or a quick look such as `LinearPreview.pictures`."""


@dataclass(frozen=True, eq=False)
class PictureStep(Progress):
    """A step of a request's drawing, of `total` over all its pictures.

    `seeds` are those of the pictures at work, `latents` the sampler's present guess of them, clean and scaled, and
    `preview()` shows it. `pictures` holds what this step finished: nothing, but in the last step of each picture.
    """

    seeds: tuple[int, ...]
    latents: Float[Tensor, "b c h w"]
    preview: Callable[[], list[Image.Image]]
    pictures: tuple[Image.Image, ...] = ()


def stream(
    system: StableDiffusion,
    request: TextToImage,
    *,
    refiner: StableDiffusion | None = None,
    preview: Show | None = None,
) -> Iterator[PictureStep]:
    """Draw a request's pictures and yield every step; closing the generator stops the work.

    Picture k is the one that seed + k alone gives. On the CPU it is so to the bit (at one thread count), because there
    the pictures are drawn one after another: kernels sum in another order for another batch, which moves the last bits
    and, over many steps, more. On a GPU, where a batch is worth it, up to GPU_BATCH are drawn together, unless it is
    short of memory (`offload`), and agree with the pictures made alone but for rounding. `refiner` is the model that
    the request hands over to; `preview` decodes in full where None. Drawings of one model take turns, step by step:
    see `generate.modified`. Raises ReverieError, before any work, where the size does not fit.
    """
    request = fill_in(system, request)
    scarce = system.device.type == "cpu" or offloader_of(system.unet) is not None
    draw = partial(_draw, system, request, 1 if scarce else GPU_BATCH, refiner, preview)
    return in_turn(modify(system, request, refiner=refiner), draw)


def fill_in(system: StableDiffusion, request: TextToImage) -> TextToImage:
    """Fill in the sizes and guidance that are left to the model. Raises ReverieError for a size that does not fit."""
    width, height = canvas.size_of(system, request)
    hires = request.hires
    if hires is not None:
        larger = hires.size(width, height, system.codec.factor)
        system.codec.latent_shape(*larger)
        hires = hires.replace(width=larger[0], height=larger[1])
    return request.with_guidance(system.guidance).replace(width=width, height=height, hires=hires)


def _draw(
    system: StableDiffusion,
    request: TextToImage,
    batch: int,
    refiner: StableDiffusion | None,
    preview: Show | None,
    modification: Modification,
) -> Iterator[PictureStep]:
    notes = (*adapter_notes(system, request), *model_limits(request, system))
    run = prepare_run(system, request, refiner)

    def show(latents: Tensor) -> list[Image.Image]:
        with modification.active():
            return (preview or run.codec.pictures)(latents)

    starts = range(0, request.count, batch)
    total, done = sum(len(one) for one in run.passes) * len(starts), 0
    for start in starts:
        singles = [request.only(k) for k in range(start, min(start + batch, request.count))]
        seeds = tuple(single.seed for single in singles)
        for step, last in passes(run, singles):
            pictures = finish(run, singles, step) if last else ()
            look, done = partial(show, step.denoised), done + 1
            yield PictureStep(done, total, "steps", seeds, step.denoised, look, pictures, notes=notes)
            notes = ()


def passes(run: PictureRun, singles: Sequence[TextToImage]) -> Iterator[tuple[Step, bool]]:
    """Go through the passes of a request, each from the latents of the one before; tell the very last step."""
    latents = None
    for number, one in enumerate(run.passes):
        for step in run.steps(one, singles, latents):
            yield step, number == len(run.passes) - 1 and step.index == step.total - 1
        latents = step.x


def finish(run: PictureRun, singles: Sequence[TextToImage], step: Step) -> tuple[Image.Image, ...]:
    """Decode the last step's latents, and give every picture the request that makes it alone."""
    pictures = [run.canvas.finish(picture) for picture in run.codec.pictures(step.x)]
    for picture, single in zip(pictures, singles, strict=True):
        picture.info.update(texts(single, run.system.name))
    return tuple(pictures)
