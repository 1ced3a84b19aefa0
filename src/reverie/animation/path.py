"""A film's path: prompts, guidance and starting states, interpolated between those of two keyframes.

The place k is the k-th keyframe, and k + w lies the fraction w of the way to the next. All frames start at the level
that the shared steps came down to (andreasjansson/cog-stable-diffusion, branch animate): from one latent where all
keyframes have one seed, else between those of the seeds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.animation import blend
from reverie.animation.blend import fit_picture, invert_picture
from reverie.codecs.image import ImageCodec
from reverie.diffusion.inversion import INVERTERS, Inverted
from reverie.diffusion.noise import Noise, slerp
from reverie.diffusion.samplers import pick_sampler
from reverie.diffusion.schedule import to_ve
from reverie.diffusion.step import Point, Sampler, Sigmas
from reverie.errors import ReverieError
from reverie.generate import conditioning
from reverie.generate.conditioning import Prompts
from reverie.generate.image import prepare_run
from reverie.generate.sample import Bind, guided_denoiser, noise_levels, resume
from reverie.requests.adapter_files import extract
from reverie.requests.base import steps_taken
from reverie.requests.films import Animation, Keyframe
from reverie.requests.parts import VariedPicture
from reverie.requests.pictures import TextToImage
from reverie.system import StableDiffusion


@dataclass(frozen=True, eq=False)
class PathStop:
    """Hold what a keyframe is drawn from: `start` is one row at the level where the frames begin."""

    prompts: Prompts
    guidance: float
    strength: float
    seed: int
    start: Inverted


class NoiseBetween:
    """Draw noise between that of two seeds, the same for every film and batch: row i goes `ws[i]` of the way.

    The norm of each draw is kept: all go along great circles. `drawn` draws were taken by the steps before.
    """

    def __init__(self, seeds: tuple[int, int], ws: Sequence[float], noise: partial[Noise], drawn: int = 0) -> None:
        self._noise, self._ws = noise(seeds), ws
        for _ in range(drawn):
            self._noise.next()

    def initial(self) -> Float[Tensor, "b c h w"]:
        """Give the first draw."""
        return self._rows(self._noise.initial())

    def next(self) -> Float[Tensor, "b c h w"]:
        """Give the next draw."""
        return self._rows(self._noise.next())

    def _rows(self, pair: Float[Tensor, "2 c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.cat([_arc(pair[:1], pair[1:], w) for w in self._ws])


class _Counted(Noise):
    """Count the draws after the first."""

    drawn = 0

    def next(self) -> Tensor:
        self.drawn += 1
        return super().next()


@dataclass(frozen=True, eq=False)
class Path:
    """Hold a film's keyframes, ready to be drawn between; a closed path holds its first once more at its end."""

    system: StableDiffusion
    codec: ImageCodec
    animation: Animation
    request: TextToImage
    stops: tuple[PathStop, ...]
    sampler: Sampler
    sigmas: Sigmas
    bind: Bind
    drawn: int

    def group(self, place: float) -> Hashable:
        """Tell which places may be drawn in one batch: those of one group.

        Keyframes are drawn alone, so that they are to the bit what their requests alone give; so are places where the
        guidance changes along the way, as a batch has one.
        """
        segment, w = self._part(place)
        a, b = self._ends(segment)
        level = steps_taken(self.animation.steps, self._strength(place))
        drawn_over = self.animation.init_video is not None
        if not drawn_over and w in (0, 1):
            return "keyframe", segment + w
        own = a.guidance != b.guidance or blend.weights(a.prompts) != blend.weights(b.prompts)
        return segment, level, place if own else None

    def draw(self, places: Sequence[float], under: Sequence[Image.Image] = ()) -> Float[Tensor, "b c h w"]:
        """Return clean latents, a row for each place of one group; `under` are the pictures that are drawn over."""
        segment, ws = self._part(places[0])[0], [self._part(place)[1] for place in places]
        a, b = self._ends(segment)
        prompts = blend.stack_prompts([self._prompts(a, b, w, single=len(ws) == 1) for w in ws])
        guidance = a.guidance + ws[0] * (b.guidance - a.guidance)
        request = self.request.replace(guidance=guidance)
        denoise = guided_denoiser(self.system, request, prompts, self.sigmas, bind=self.bind)
        noise = NoiseBetween((a.seed, b.seed), ws, self._noise, self.drawn)
        if under:
            start = self._noise_over(under, noise, steps_taken(self.animation.steps, self._strength(places[0])))
            sigmas = self.sigmas[-steps_taken(self.animation.steps, self._strength(places[0])) - 1 :]
        else:
            start, sigmas = _rows([_state(a.start, b.start, w) for w in ws]), self.sigmas[self.animation.shared_steps :]
        for step in resume(denoise, sigmas, noise, self.sampler, start.x, start.past):
            last = step
        return last.x

    def _noise_over(self, under: Sequence[Image.Image], noise: NoiseBetween, taken: int) -> Inverted:
        """Noise pictures as image to image does; all steps forget them."""
        first = self.sigmas[-taken - 1].item()
        if taken == self.animation.steps:
            return Inverted(to_ve(noise.initial(), first))
        return Inverted(self.codec.encode(under) + first * noise.initial())

    @cached_property
    def _noise(self) -> partial[Noise]:
        shape = self.codec.latent_shape(self.request.width or 0, self.request.height or 0)
        return partial(Noise, shape=shape, device=self.system.device)

    def _part(self, place: float) -> tuple[int, float]:
        segment = max(0, min(int(place), len(self.stops) - 2))
        return segment, place - segment

    def _ends(self, segment: int) -> tuple[PathStop, PathStop]:
        return self.stops[segment], self.stops[min(segment + 1, len(self.stops) - 1)]

    def _strength(self, place: float) -> float:
        segment, w = self._part(place)
        a, b = self._ends(segment)
        return a.strength + w * (b.strength - a.strength)

    def _prompts(self, a: PathStop, b: PathStop, w: float, single: bool) -> Prompts:
        if single and w in (0, 1):
            return b.prompts if w else a.prompts
        return blend.between(a.prompts, b.prompts, w, blend.MIXES[self.animation.interpolation])


def _arc(a: Tensor, b: Tensor, w: float) -> Tensor:
    """Go along the great circle; its ends are what they are, to the bit."""
    return slerp(a, b, w) if 0 < w < 1 else b if w else a


def _state(a: Inverted, b: Inverted, w: float) -> Inverted:
    if a is b or w == 0:
        return a
    return b if w == 1 else a.between(b, w)


def _rows(states: Sequence[Inverted]) -> Inverted:
    """Join states that remember alike into one batch."""
    past = tuple(
        Point(column[0].sigma, torch.cat([point.x for point in column]), torch.cat([point.x0 for point in column]))
        for column in zip(*(state.past for state in states), strict=True)
    )
    return Inverted(torch.cat([state.x for state in states]), past)


def prepare_path(system: StableDiffusion, animation: Animation, request: TextToImage) -> Path:
    """Make a film's path ready: prompts encoded, pictures inverted, the shared steps taken.

    `request` is what `shared_request` gives, whose changes to the model are active. Raises ReverieError for files that
    are missing or do not fit, and for pictures of another size.
    """
    if request.vary and system.image_encoder is None:
        raise ReverieError(
            f"{system.name} goes between no pictures that it varies; give a model of SD 2.1 unCLIP or of image "
            "variations, or the pictures as the keyframes' own (@image)"
        )
    run = prepare_run(system, request)
    return _Builder(
        system, run.codec, animation, request, run.bind(run.passes[0], [request], run.passes[0].extra)
    ).path()


def shared_request(animation: Animation, size: tuple[int, int]) -> TextToImage:
    """Return what all pictures of a film, of a size in pixels, have in common; its prompt is the LoRAs alone.

    Where keyframes vary pictures it varies the first one, which nobody sees.

    Raises ReverieError for LoRAs that keyframes want with several weights.
    """
    through_pictures = any(keyframe.image for keyframe in animation.keyframes)
    shared = animation.sampling_fields() | ({"sampler": "ddim"} if through_pictures else {})
    return TextToImage(
        **shared,
        prompt=lora_tags([keyframe.prompt for keyframe in animation.keyframes]),
        width=size[0],
        height=size[1],
        tile=animation.tile,
        regions=animation.regions,
        vary=_pictures_of(next((keyframe for keyframe in animation.keyframes if keyframe.vary), Keyframe())),
    )


def _pictures_of(keyframe: Keyframe) -> tuple[VariedPicture, ...]:
    return () if keyframe.vary is None else (VariedPicture(image=keyframe.vary),)


def lora_tags(prompts: Sequence[str]) -> str:
    """Write each LoRA that prompts name once: it is in the model all the way from one to the other."""
    tags = dict.fromkeys(tag for prompt in prompts for tag in extract(prompt).loras)
    names = [tag.name for tag in tags]
    for name in names:
        if names.count(name) > 1:
            raise ReverieError(f"the prompts name the LoRA '{name}' with several weights; give it one")
    return "".join(f"<lora:{tag.name}:{tag.text!r}:{tag.unet!r}>" for tag in tags)


class _Builder:
    """Build the stops of a path; what keyframes have in common is computed once."""

    def __init__(
        self, system: StableDiffusion, codec: ImageCodec, animation: Animation, request: TextToImage, bind: Bind
    ) -> None:
        self.system, self.codec, self.animation, self.request, self.bind = system, codec, animation, request, bind
        self.sigmas = noise_levels(system, request)
        self.sampler = pick_sampler(animation.sampler, system.schedule, animation.eta)
        self.shape = codec.latent_shape(request.width or 0, request.height or 0)
        self.through_pictures = any(keyframe.image for keyframe in animation.keyframes)
        self.drawn = 0
        self._prompts: dict[TextToImage, Prompts] = {}
        self._starts: dict[int, Inverted] = {}

    def path(self) -> Path:
        """Return the finished path."""
        animation = self.animation
        sampler = INVERTERS[animation.inversion].down if self.through_pictures else self.sampler
        middle = self._middle()
        stops = [self._stop(keyframe, middle) for keyframe in animation.keyframes]
        stops += stops[:1] if animation.loops_on else []
        parts = (self.system, self.codec, animation, self.request, tuple(stops), sampler, self.sigmas, self.bind)
        return Path(*parts, self.drawn)

    def _stop(self, keyframe: Keyframe, middle: tuple[Prompts, float]) -> PathStop:
        seed = self.animation.seed if keyframe.seed is None else keyframe.seed
        request, prompts = self._encode(keyframe)
        if keyframe.image is None:
            start = self._start(seed, middle)
        else:
            size = (self.request.width or 0, self.request.height or 0)
            picture = fit_picture(keyframe.image.image(), size, self.animation.fit)
            parts = (self.system, self.codec, request, prompts, self.sigmas, picture, self.animation.inversion)
            start = invert_picture(*parts, bind=self.bind)
        return PathStop(prompts, request.scale, keyframe.strength or self.animation.strength, seed, start)

    def _encode(self, keyframe: Keyframe) -> tuple[TextToImage, Prompts]:
        negative = self.animation.negative if keyframe.negative is None else keyframe.negative
        guidance = self.animation.guidance if keyframe.guidance is None else keyframe.guidance
        changes = {
            "prompt": keyframe.prompt,
            "negative": negative,
            "guidance": guidance,
            "vary": _pictures_of(keyframe),
        }
        request = self.request.replace(**changes)
        encoded = request if self.system.unet.config.time_cond_proj_dim is not None else request.replace(guidance=1.0)
        if encoded not in self._prompts:
            self._prompts[encoded] = conditioning.encode(self.system, encoded)
        return request, self._prompts[encoded]

    def _middle(self) -> tuple[Prompts, float]:
        """Return the prompts and the guidance of the shared steps: the middle keyframe's, or halfway of two."""
        count = len(self.animation.keyframes)
        pair = [self._encode(self.animation.keyframes[index]) for index in ((count - 1) // 2, count // 2)]
        (one, a), (other, b) = pair
        mix = blend.MIXES[self.animation.interpolation]
        return blend.between(a, b, 0.5, mix), (one.scale + other.scale) / 2

    def _start(self, seed: int, middle: tuple[Prompts, float]) -> Inverted:
        """Take the shared steps from a seed's noise, once for each seed."""
        if seed in self._starts:
            return self._starts[seed]
        noise, shared = _Counted([seed], self.shape, self.system.device), self.animation.shared_steps
        start = Inverted(to_ve(noise.initial(), self.sigmas[0].item()))
        if shared:
            request = self.request.replace(guidance=middle[1])
            denoise = guided_denoiser(self.system, request, middle[0], self.sigmas, bind=self.bind)
            steps = resume(denoise, self.sigmas, noise, self.sampler, start.x)
            *_, last = islice(steps, shared)
            start, self.drawn = Inverted(last.x, last.past), noise.drawn
        wide = self.through_pictures and self.system.device.type != "mps"  # as what pictures are inverted to
        self._starts[seed] = replace(start, x=start.x.double()) if wide else start
        return self._starts[seed]
