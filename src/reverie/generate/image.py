"""From a request to pictures: encode the prompt, sample, decode, and write the request into each picture.

A `PictureRun` is what the pictures of one request share: the canvas, the passes of the sampler, prompts, ControlNets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.adapters.control import Control, load_controlnet
from reverie.adapters.features import FeatureControl, LayerControl, find_lllite, find_t2i_adapter
from reverie.adapters.ip_adapter import load_image_prompts, show_varied
from reverie.checkpoints.single import RGB
from reverie.codecs.image import ImageCodec
from reverie.diffusion.denoiser import Denoise
from reverie.diffusion.guidance import hold_known, switch_at
from reverie.diffusion.noise import SOURCES, Noise
from reverie.diffusion.samplers import pick_sampler
from reverie.diffusion.step import Sigmas, Step
from reverie.diffusion.windows import Place, Tiles, by_tiles
from reverie.errors import ReverieError
from reverie.files import name_of
from reverie.generate import canvas, conditioning
from reverie.generate.canvas import (
    Canvas,
    doubles,
    edits,
    enlarges,
    further_channels,
    pick_upscaler,
    prepare,
    starting_noise,
    takes_depth,
)
from reverie.generate.conditioning import Encode, Prompts, adapter_notes, follow_recommended
from reverie.generate.modified import Modification, in_turn, modify
from reverie.generate.notes import model_limits, with_sums
from reverie.generate.regions import bind_regions, cut_regions
from reverie.generate.sample import (
    SAME,
    Bind,
    Steering,
    bind_extra,
    bind_level,
    guided_denoiser,
    level_at,
    noise_embeddings,
    noise_levels,
    sample,
)
from reverie.media.edges import PREPROCESSORS
from reverie.progress import Progress
from reverie.requests.base import FREE_LEVELS, steps_taken
from reverie.requests.parts import ControlInput, IPAdapterInput
from reverie.requests.pictures import ImageToImage, Outpaint, TextToImage
from reverie.requests.records import texts
from reverie.runtime import is_packed, pack
from reverie.runtime.offload import HOST, by_block, offloader_of
from reverie.system import StableDiffusion

Enlarge = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Pass:
    """Hold one run of the sampler: the request with the size and steps of this run, its levels and its prompts.

    `bind` gives its network, which takes `extra` beside the latents. In `tiles` it is asked tile by tile, each under
    its part of `steering`, which is as large as the latents. `enlarge` makes the latents to start from of those of the
    pass before.
    """

    request: TextToImage
    sigmas: Sigmas
    prompts: Prompts
    refined: Prompts | None
    bind: Bind
    extra: Float[Tensor, "1 e h w"] | None
    tiles: Tiles | None
    steering: Steering
    enlarge: Enlarge

    def __len__(self) -> int:
        return len(self.sigmas) - 1

    def within(self, bind: Bind, place: Place | None) -> Bind:
        """Bind what is asked at a tile's place, or of all: regions cover there what they cover of the whole."""
        return bind if self.tiles is None or place is None else cut_regions(bind, self.tiles.size, place)


@dataclass(frozen=True, eq=False)
class PictureRun:
    """Hold everything that the pictures of a request share."""

    system: StableDiffusion
    codec: ImageCodec
    canvas: Canvas
    passes: tuple[Pass, ...]
    refiner: StableDiffusion | None

    def steps(
        self, one: Pass, singles: Sequence[TextToImage], latents: Float[Tensor, "b c h w"] | None
    ) -> Iterator[Step]:
        """Run one pass for some pictures; `latents` are those of the pass before."""
        shape = self.codec.latent_shape(one.request.width or 0, one.request.height or 0)
        before = (RGB, *shape[1:]) if enlarges(self.system) else None
        noise = starting_noise(singles, shape, self.codec.factor, self.system.device, before)
        denoise = self._denoiser(one, singles, noise.initial())
        init = self.canvas.begin(noise.initial()) if latents is None else one.enlarge(latents)
        sampler = pick_sampler(one.request.sampler, self.system.schedule, one.request.eta)
        return sample(denoise, one.sigmas, noise, sampler, init)

    def bind(self, one: Pass, singles: Sequence[TextToImage], extra: Tensor | None, place: Place | None = None) -> Bind:
        """Bind the network of a pass, with what it sees beside the latents, at a tile's place or all."""
        bind = one.bind if place is None else one.within(one.steering.cut(place).bind(), place)
        if enlarges(self.system):
            bind = bind_level(bind, singles[0].noise_level or 0)
        return noise_embeddings(self.system, bind_extra(bind, extra, place), singles)

    def _noise_extra(self, one: Pass, singles: Sequence[TextToImage]) -> Float[Tensor, "b e h w"] | None:
        """Return what is seen beside the latents; a picture that is enlarged is noised by the seeds."""
        if one.extra is None or not enlarges(self.system):
            return one.extra
        source, seeds = SOURCES[singles[0].rng], [single.seed for single in singles]
        eps = Noise(seeds, one.extra.shape[1:], self.system.device, source).initial()
        return self.system.picture_noise(one.extra.expand_as(eps), eps, singles[0].noise_level or 0)

    def _denoiser(self, one: Pass, singles: Sequence[TextToImage], eps: Float[Tensor, "b c h w"]) -> Denoise:
        """Build the denoiser of a pass, in tiles or of all at once, which is held where the mask is dark."""
        guided = partial(self._guided_denoiser, one, singles, self._noise_extra(one, singles))
        denoise = guided(None) if one.tiles is None else by_tiles(one.tiles, guided)
        mask, known = self.canvas.mask, self.canvas.known
        if mask is None or known is None:
            return denoise
        below = math.inf if self.canvas.start is not None else one.sigmas[0].item() * (1 - SAME)
        return hold_known(denoise, mask.expand(len(eps), -1, -1, -1), known.expand_as(eps), eps, below)

    def _guided_denoiser(
        self, one: Pass, singles: Sequence[TextToImage], extra: Tensor | None, place: Place | None
    ) -> Denoise:
        """Build the denoiser of a tile, or of all: guided, and handed over to the refiner."""
        request, rows, blind = one.request, len(singles), None
        bind = self.bind(one, singles, extra, place)
        if edits(self.system) and extra is not None:
            blind = self.bind(one, singles, torch.zeros_like(extra), place)
        denoise = guided_denoiser(self.system, request, one.prompts, one.sigmas, rows, bind, blind)
        if self.refiner is None or request.refiner is None or one.refined is None:
            return denoise
        refined = one.within(bind_regions([self.refiner.unet], self.refiner.network), place)
        refine = guided_denoiser(self.refiner, request, one.refined, one.sigmas, rows, refined)
        return switch_at(denoise, refine, level_at(self.system.schedule, request.refiner.switch))


@contextmanager
def picture_run(
    system: StableDiffusion, request: TextToImage, refiner: StableDiffusion | None = None
) -> Iterator[PictureRun]:
    """Hold the model, changed as a request asks, for the block; afterwards it is as it was. See `prepare_run`."""
    with modify(system, request, refiner=refiner) as modification, modification.active():
        yield prepare_run(system, request, refiner)


def prepare_run(
    system: StableDiffusion,
    request: TextToImage,
    refiner: StableDiffusion | None = None,
    encode: Encode = conditioning.encode,
) -> PictureRun:
    """Make ready what a request's pictures share; its size is filled in, and its changes to the model are active.

    `encode` encodes its prompts. Raises ReverieError where files of the request are missing or do not fit the model,
    and where the request asks for a refiner and none is given.
    """
    if request.refiner is not None and refiner is None:
        raise ReverieError("the request hands over to a refiner; give the model that it names")
    codec = system.codec if request.tile == "none" else system.codec.without_tiles()
    canvas = prepare(system, codec, request)
    controls = [load_control(system, control) for control in request.controls]
    if request.merge_tokens and any(isinstance(control, LayerControl) for control in controls):
        raise ReverieError("a ControlNet-LLLite changes tokens that merge_tokens merges; leave out one of them")
    shown = [*show_varied(system, request), *request.ip_adapters]
    steering = Steering(system, controls, load_image_prompts(system, shown))
    planned = _passes(system, codec, request, refiner, steering, canvas.extra, encode)
    return PictureRun(system, codec, canvas, planned, refiner)


def load_control(system: StableDiffusion, control: ControlInput) -> Control | FeatureControl | LayerControl:
    """Load a ControlNet, a T2I-Adapter or a ControlNet-LLLite, and prepare the picture that it sees."""
    picture = control.image.image()
    if control.preprocessor != "none":
        picture = PREPROCESSORS[control.preprocessor](picture)
    way = (control.weight, control.start, control.end)
    adapter = find_t2i_adapter(control.model, device=system.device, dtype=system.dtype)
    layers = find_lllite(control.model, device=system.device, dtype=system.dtype)
    if control.kind is not None and (adapter or layers):
        title = "T2I-Adapter" if adapter else "ControlNet-LLLite"
        raise ReverieError(f"a {title} is for one kind of pictures; leave out kind {control.kind}")
    if adapter is not None:
        return FeatureControl(adapter, picture, *way)
    if layers is not None:
        return LayerControl(layers, picture, *way)
    offloader = offloader_of(system.unet)
    carried = (
        offloader is not None and offloader.split is by_block
    )  # as a whole it would take turns with the U-Net at every step
    place = HOST if carried else system.device
    network = load_controlnet(control.model, device=place, dtype=system.dtype, base=system.unet)
    if offloader is not None and carried:
        offloader.take(network)
    if is_packed(system.unet):
        pack(network)
    return Control(network, picture, control.weight, control.start, control.end, control.kind)


def _passes(
    system: StableDiffusion,
    codec: ImageCodec,
    request: TextToImage,
    refiner: StableDiffusion | None,
    steering: Steering,
    extra: Tensor | None,
    encode: Encode,
) -> tuple[Pass, ...]:
    """Plan the first pass, and the second where the request asks for one.

    Of the request's levels a pass visits the last int(steps * strength) intervals, as diffusers counts.
    """
    bind = steering.bind()

    def plan(request: TextToImage, strength: float, extra: Tensor | None, after: int | None, enlarge: Enlarge) -> Pass:
        sigmas = noise_levels(system, request)[-steps_taken(request.steps, strength) - 1 :]
        prompts = encode(system, request, after)
        refined = encode(refiner, request, after) if refiner else None
        height, width = codec.latent_shape(request.width or 0, request.height or 0)[1:]
        tiles = None if request.tile_size is None else Tiles.over(height, width, request.tile_size // codec.factor)
        if tiles is None or tiles.whole:
            return Pass(request, sigmas, prompts, refined, bind, extra, None, steering, enlarge)
        large = steering.stretch(height, width)
        return Pass(request, sigmas, prompts, refined, bind, extra, tiles, large, enlarge)

    strength = request.strength if isinstance(request, ImageToImage | Outpaint) else 1.0
    first = plan(request, strength, extra, None, lambda latents: latents)
    if request.hires is None:
        return (first,)
    hires = request.hires
    width, height = hires.size(request.width or 0, request.height or 0, codec.factor)
    changes: dict[str, object] = {"width": width, "height": height, "steps": hires.steps or request.steps}
    if hires.steps is not None:
        changes |= dict.fromkeys(FREE_LEVELS, ())  # of the first pass alone
    if isinstance(request, ImageToImage):
        changes["strength"] = hires.strength  # the first pass's may leave none of so few steps
    larger = request.replace(**changes)
    enlarge = partial(pick_upscaler(system, hires.upscaler), codec, (width, height))
    return first, plan(larger, hires.strength, further_channels(system, codec, larger), request.steps, enlarge)


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
    encode: Encode = conditioning.encode,
) -> Iterator[PictureStep]:
    """Draw a request's pictures and yield every step; closing the generator stops the work.

    Picture k is the one that seed + k alone gives. On the CPU it is so to the bit (at one thread count), because there
    the pictures are drawn one after another: kernels sum in another order for another batch, which moves the last bits
    and, over many steps, more. On a GPU, where a batch is worth it, up to GPU_BATCH are drawn together, unless it is
    short of memory (`offload`), and agree with the pictures made alone but for rounding. `refiner` is the model that
    the request hands over to; `preview` decodes in full where None; `encode` encodes the prompts. Drawings of one
    model take turns, step by step: see `generate.modified`. Raises ReverieError, before any work, where the size does
    not fit.
    """
    request = fill_in(system, request)
    scarce = system.device.type == "cpu" or offloader_of(system.unet) is not None
    draw = partial(_draw, system, request, 1 if scarce else GPU_BATCH, refiner, preview, encode)
    return in_turn(modify(system, request, refiner=refiner), draw)


EDITING = {"strength": 1.0, "image_guidance": 1.5}  # what a model that edits pictures recommends (2211.09800)
ENLARGING = {"strength": 1.0, "guidance": 9.0, "noise_level": 20}  # what one that enlarges them does (diffusers)
DOUBLING = {"strength": 1.0, "guidance": 1.0}  # what one that doubles latents does, whose prompt need not be known
# What changes layers that one that doubles latents does not have, or needs a U-Net of other shapes.
NOT_DOUBLED = (
    *("controls", "ip_adapters", "regions", "refiner", "tile", "cache_steps", "merge_tokens", "freeu"),
    "perturbed_guidance",
)


def fill_in(system: StableDiffusion, request: TextToImage) -> TextToImage:
    """Fill in what is left to the model: sizes, guidance and what it recommends.

    Raises ReverieError for a size that does not fit, and where a model is to be led by a picture that edits none.
    """
    if not edits(system) and getattr(request, "image_guidance", None) is not None:
        raise ReverieError(f"{system.name} edits no pictures, as InstructPix2Pix does; leave out image_guidance")
    if request.depth is not None and not takes_depth(system):
        raise ReverieError(
            f"{system.name} takes no depth map; leave out `depth`, give a model of SD 2 depth, or the map as `control` "
            "with a ControlNet of depth",
            field="depth",
        )
    if request.noise_level and not (request.vary and system.image_encoder) and not enlarges(system):
        raise ReverieError(f"{system.name} does not noise what it sees; leave out `noise_level`", field="noise_level")
    if edits(system):
        request = request.with_recommended(EDITING)
    if enlarges(system) and isinstance(request, ImageToImage):
        request, most = request.with_recommended(ENLARGING), system.picture_noise.max_level
        if (level := request.noise_level or 0) > most:
            raise ReverieError(
                f"noise level {level} is not possible: {system.name} takes 0 to {most}", field="noise_level"
            )
    if doubles(system):
        request = request.with_recommended(DOUBLING)
        plain = TextToImage.model_fields
        for name in NOT_DOUBLED:
            if getattr(request, name) != plain[name].default:
                raise ReverieError(
                    f"{system.name} doubles pictures by a U-Net of its own; leave out {name.replace('_', ' ')}",
                    field=name,
                )
    width, height = canvas.size_of(system, request)
    hires = request.hires
    if hires is not None:
        larger = hires.size(width, height, system.codec.factor)
        system.codec.latent_shape(*larger)
        hires = hires.replace(width=larger[0], height=larger[1])
    return follow_recommended(system, request).replace(width=width, height=height, hires=hires)


def _draw(
    system: StableDiffusion,
    request: TextToImage,
    batch: int,
    refiner: StableDiffusion | None,
    preview: Show | None,
    encode: Encode,
    modification: Modification,
) -> Iterator[PictureStep]:
    run = prepare_run(system, request, refiner, encode)
    notes = adapter_notes(system, request)  # by the sums that were written down, before others join them
    request, changed = with_sums(system, request)
    notes = (*notes, *changed, *model_limits(request, system), *_idle(run, request))

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


def _idle(run: PictureRun, request: TextToImage) -> Iterator[str]:
    """Say which controls and IP-Adapters act on no step, as no noise level lies on their part of the way."""
    system, levels = run.system, torch.cat([one.sigmas[:-1] for one in run.passes])
    ways = [system.progress(t) for t in system.scalings(system.schedule, levels).c_noise.tolist()]
    asked: list[ControlInput | IPAdapterInput] = [*request.controls, *request.ip_adapters]
    for one in asked:
        if not any(one.start <= way <= one.end for way in ways):
            part = f"from {one.start:g} to {one.end:g} of the way"
            yield f"'{name_of(one.model)}' acts on no step: none of the {len(ways)} noise levels is {part}"


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
