"""From a model, prompts and noise to latents: one guided denoiser and one loop for everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reverie.adapters.control import Control, bind_controls
from reverie.adapters.features import FeatureControl, LayerControl, bind_features, bind_layer_controls
from reverie.adapters.ip_adapter import ImagePrompt, bind_image_prompts
from reverie.diffusion.denoiser import Denoise, Level, Network, denoiser
from reverie.diffusion.guidance import (
    PredictPair,
    alone,
    apart,
    beside_blind,
    beside_perturbed,
    concatenate_channels,
    consistency,
    dynamic_thresholding,
    guide,
    linear,
    linear_rescaled,
    renoising_scale,
    together,
    within,
)
from reverie.diffusion.noise import SOURCES, Noise
from reverie.diffusion.schedule import Schedule, to_ve, to_vp
from reverie.diffusion.spacings import SPACINGS, visit
from reverie.diffusion.step import Latent, NoiseSource, Past, Sampler, Sigmas, Step
from reverie.diffusion.windows import Place
from reverie.errors import ReverieError
from reverie.generate.canvas import resize
from reverie.generate.conditioning import Prompts
from reverie.generate.regions import bind_regions
from reverie.media.pictures import to_rgb
from reverie.models.layers import timestep_embedding
from reverie.requests.pictures import ImageToImage, TextToImage
from reverie.runtime.changes import perturbing
from reverie.system import Conditioning, StableDiffusion

# Dynamic thresholding wants the range of clean data. Scaled latents have unit variance: 99.7 % lie within 3.
LATENT_BOUND = 3.0
SAME = 1e-9  # levels within this fraction are one level but for rounding
NEAR = 1e-4  # a level counts as reached within this fraction of it: samplers compute it in other ways

Bind = Callable[[Conditioning], Network]
"""Give the network for a conditioning, as `StableDiffusion.network` does."""


@dataclass(frozen=True, eq=False)
class Steering:
    """Hold what steers a drawing beside its prompts: ControlNets and kin, T2I-Adapters and IP-Adapters."""

    system: StableDiffusion
    controls: Sequence[Control | FeatureControl | LayerControl]
    prompts: Sequence[ImagePrompt]

    def bind(self) -> Bind:
        """Return what binds the network that they steer. Raises ReverieError where one is of another family."""
        nets = [one for one in self.controls if isinstance(one, Control)]
        bind = bind_controls(self.system, nets)
        bind = bind_features(self.system, [one for one in self.controls if isinstance(one, FeatureControl)], bind)
        layers = [one for one in self.controls if isinstance(one, LayerControl)]
        bind = bind_layer_controls(self.system, layers, bind)
        bind = bind_image_prompts(self.system, self.prompts, bind)
        return bind_regions([self.system.unet, *(control.network for control in nets)], bind)

    def stretch(self, height: int, width: int) -> Steering:
        """Stretch pictures and masks to latents of a height and a width."""
        size, area = (width * self.system.codec.factor, height * self.system.codec.factor), (height, width)
        controls = [replace(one, picture=resize(to_rgb(one.picture), size)) for one in self.controls]
        prompts = [
            one if one.mask is None else replace(one, mask=F.interpolate(one.mask, area, mode="area"))
            for one in self.prompts
        ]
        return replace(self, controls=controls, prompts=prompts)

    def cut(self, place: Place) -> Steering:
        """Cut what steers a tile out of what is stretched."""
        rows, columns = place
        box = tuple(side * self.system.codec.factor for side in (columns.start, rows.start, columns.stop, rows.stop))
        controls = [replace(one, picture=one.picture.crop(box)) for one in self.controls]
        prompts = [one if one.mask is None else replace(one, mask=one.mask[..., *place]) for one in self.prompts]
        return replace(self, controls=controls, prompts=prompts)


def bind_extra(bind: Bind, extra: Tensor | None, place: Place | None) -> Bind:
    """Bind a U-Net with its further channels, at a tile's place or all."""
    if extra is None:
        return bind
    seen = extra if place is None else extra[..., *place]

    def wide(conditioning: Conditioning) -> Network:
        return concatenate_channels(bind(conditioning), seen)

    return wide


def guided_denoiser(
    system: StableDiffusion,
    request: TextToImage,
    prompts: Prompts,
    sigmas: Sigmas,
    rows: int = 1,
    bind: Bind | None = None,
    blind: Bind | None = None,
) -> Denoise:
    """Build denoise(x, sigma) for `rows` pictures, towards and away from what the prompts say at each noise level.

    `sigmas` are the levels that the sampler visits, which tell the steps. `bind` gives the network for a conditioning
    (`system.network` where None), whose rows are those of the negative prompt and of every part of the prompt, `rows`
    for each; where the negative prompt is longer or shorter than the prompt, its rows are bound by themselves. `blind`
    gives the network that is not shown the picture which a request edits.
    """

    weights = [guide.weight for guide in prompts.positive]
    away = Away(system, request.perturbed_guidance) if request.perturbed_guidance else None

    @cache
    def bind_pair(guided: bool, lead: Lead | None, negative: Conditioning, *positive: Conditioning) -> PredictPair:
        return _bind_pair(guided, lead, away, negative, positive, weights, rows, bind or system.network)

    @cache
    def stage(guidance: float, lead: Lead | None, *said: Conditioning) -> Denoise:
        guided = guidance != 1 or tuple(weights) != (1.0,) or lead is not None
        rescale = request.guidance_rescale if guided else 0.0
        mix = linear_rescaled(guidance, rescale) if rescale else linear(guidance)
        return _denoiser(system, request, guide(bind_pair(guided, lead, *said), mix))

    def asking(guidance: Callable[[int], float], lead: Lead | None = None) -> Denoise:
        def denoise(x: Float[Tensor, "b c h w"], sigma: Level) -> Float[Tensor, "b c h w"]:
            step = step_at(sigmas, sigma)
            said = prompts.negative.at(step), *(guide.at(step) for guide in prompts.positive)
            return stage(guidance(step), lead, *said)(x, sigma)

        return denoise

    start, end = (level_at(system.schedule, way) for way in request.guidance_interval)
    by_picture = request.image_guidance if isinstance(request, ImageToImage) else None
    lead = None if blind is None or by_picture in (None, 1) else Lead(blind, by_picture)
    return within(asking(_scales(request, sigmas), lead), asking(lambda step: 1.0), start, end)


def _scales(request: TextToImage, sigmas: Sigmas) -> Callable[[int], float]:
    """Return the scale of guidance at each step, which CFG++ reckons from the levels that a step goes between."""
    if not request.cfg_pp:
        return lambda step: request.scale
    if request.scale > 1:
        raise ReverieError(f"guidance {request.scale:g} is not possible with CFG++; give 0 to 1, such as 0.6")
    return lambda step: renoising_scale(request.scale, *sigmas[step : step + 2].tolist())


def noise_embeddings(system: StableDiffusion, bind: Bind, singles: Sequence[TextToImage]) -> Bind:
    """Bind a network that sees noised embeddings, unCLIP's, for requests of one picture each; others as they are.

    The noise is that of each seed. The level's embedding follows the picture's. Rows of zeros, which keep away from the
    picture, stay zeros.
    """
    noise, level = system.embedding_noise, singles[0].noise_level or 0
    if noise is None:
        return bind
    width, source = len(noise.mean), SOURCES[singles[0].rng]
    eps = Noise([single.seed for single in singles], (width,), system.device, source).initial()

    def bind_noised(conditioning: Conditioning) -> Network:
        assert conditioning.pooled is not None
        clean = conditioning.pooled
        noisy = noise(clean, eps.repeat(len(clean) // len(eps), 1), level)
        levels = timestep_embedding(torch.full((len(clean),), level, device=clean.device), width).to(clean)
        pooled = torch.cat([noisy, levels], dim=1) * clean.any(dim=1, keepdim=True)
        return bind(replace(conditioning, pooled=pooled))

    return bind_noised


def bind_level(bind: Bind, level: int) -> Bind:
    """Bind a network that is given the noise level of the picture which it enlarges."""

    def bind_given(conditioning: Conditioning) -> Network:
        tokens = conditioning.tokens
        return bind(replace(conditioning, pooled=tokens.new_full((len(tokens), 1), level, dtype=torch.float32)))

    return bind_given


def level_at(schedule: Schedule, way: float) -> float:
    """Return the noise level at a fraction of the way: just below that of timestep (1 - way), as diffusers counts.

    It is above all levels where the way begins, at 0, and below them where it ends, at 1.
    """
    if way in (0, 1):
        return 0.0 if way else math.inf
    return schedule.t_to_sigma(float(round(len(schedule) * (1 - way)))).item() * (1 - SAME)


def step_at(sigmas: Sigmas, sigma: Level) -> int:
    """Tell which step, counted from 0, a noise level belongs to; a level between two, to the step that crosses it."""
    return max(0, int((sigmas[:-1].cpu() >= float(sigma) * (1 - NEAR)).sum()) - 1)


class Lead(NamedTuple):
    """Say how far the picture that a request edits leads, and what it leads away from: the network that sees none."""

    blind: Bind
    scale: float


class Away(NamedTuple):
    """Say how far to lead away from what a model predicts whose innermost self-attention sees each place alone."""

    system: StableDiffusion
    scale: float

    def bind(self, bind: Bind, conditioning: Conditioning) -> Network:
        """Bind the perturbed network; its tokens are its own, as DeepCache keeps by them what levels gave."""
        network = bind(replace(conditioning, tokens=conditioning.tokens.clone()))

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            with perturbing(self.system.unet):
                return network(x, t)

        return predict


def _bind_pair(
    guided: bool,
    lead: Lead | None,
    away: Away | None,
    negative: Conditioning,
    positive: Sequence[Conditioning],
    weights: Sequence[float],
    rows: int,
    bind: Bind,
) -> PredictPair:
    """Bind the network to all that it is asked at a step.

    Unguided it asks nothing of the negative prompt, nor does a model that is told the guidance: the U-Net is then run
    once a step instead of twice.
    """
    nothing, something = _mark(negative.repeat(rows), 0.0), _mark(_batch(positive, rows), 1.0)
    if not guided or something.guidance is not None:
        pair = alone(bind(something))
    elif nothing.tokens.shape[1] == something.tokens.shape[1]:
        pair = together(bind(nothing.cat(something)), weights)
    else:
        pair = apart(bind(nothing), bind(something), weights)
    if away is not None:
        pair = beside_perturbed(pair, away.bind(bind, something), away.scale, weights)
    return pair if lead is None else beside_blind(pair, lead.blind(nothing), lead.scale)


def _mark(conditioning: Conditioning, prompted: float) -> Conditioning:
    """Mark rows as those to go towards or to keep away from, which some ControlNets tell apart."""
    tokens = conditioning.tokens
    return replace(conditioning, prompted=tokens.new_full((len(tokens),), prompted))


def _batch(parts: Sequence[Conditioning], rows: int) -> Conditioning:
    """Put the parts of a prompt into one batch; shorter ones repeat their last token, as in A1111."""
    longest = max(part.tokens.shape[1] for part in parts)
    first, *others = (
        replace(part, tokens=F.pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1]), mode="replicate"))
        for part in parts
    )
    return first.repeat(rows).cat(*(other.repeat(rows) for other in others))


def _denoiser(system: StableDiffusion, request: TextToImage, predict: Network) -> Denoise:
    """Turn a network's guided prediction into x0, held in bounds where the request asks for it."""
    denoise = denoiser(predict, system.schedule, system.scalings)
    if request.sampler == "lcm":
        denoise = consistency(denoise, system.schedule)
    if request.threshold is not None:
        denoise = dynamic_thresholding(denoise, request.threshold, LATENT_BOUND)
    return denoise


def noise_levels(system: StableDiffusion, request: TextToImage) -> Sigmas:
    """Return the noise levels that a request visits, falling.

    Sigmas of rectified flow are the t of x_t = (1 - t) x0 + t eps. Raises ReverieError for timesteps that the model
    does not have.
    """
    if request.timesteps or request.sigmas:
        return _free_levels(system, request)
    space = SPACINGS[request.schedule]
    if not request.discard_penultimate:
        return space(system.schedule, request.steps)
    sigmas = space(system.schedule, request.steps + 1)
    return torch.cat([sigmas[:-2], sigmas[-1:]])


def _free_levels(system: StableDiffusion, request: TextToImage) -> Sigmas:
    schedule, config = system.schedule, system.schedule_config
    if request.timesteps and (config.is_edm or request.timesteps[0] >= len(schedule)):
        has = "noise levels alone; give sigmas" if config.is_edm else f"timesteps from 0 to {len(schedule) - 1}"
        raise ReverieError(f"timestep {request.timesteps[0]:g} is not possible: {system.name} has {has}")
    levels = torch.tensor(request.timesteps or request.sigmas, dtype=torch.float64)
    if config.prediction == "flow":
        t = torch.cat([levels / len(schedule), levels.new_zeros(1)]) if request.timesteps else levels
        return (t / (1 - t)).clamp(max=schedule.sigma_max)
    return visit(schedule, levels) if request.timesteps else levels


def sample(
    denoise: Denoise, sigmas: Sigmas, noise: Noise, sampler: Sampler, init: Float[Tensor, "b c h w"] | None = None
) -> Iterator[Step]:
    """Denoise from sigmas[0] to sigmas[-1] and yield every step; the last step's x is the finished latents.

    Starts from noise alone, or from `init` (clean latents) with noise added.
    """
    first = sigmas[0].item()
    x = to_ve(noise.initial(), first) if init is None else init + first * noise.initial()
    return resume(denoise, sigmas, noise, sampler, x)


@torch.no_grad()
def resume(
    denoise: Denoise, sigmas: Sigmas, noise: NoiseSource, sampler: Sampler, x: Latent, past: Past = ()
) -> Iterator[Step]:
    """Denoise from a sampler's state `x` at sigmas[0], with the `past` that it remembers; see `sample`."""
    for step in sampler(denoise, x, sigmas, noise, past):
        yield replace(step, x=to_vp(step.x, step.sigma)) if step.index == step.total - 1 else step
