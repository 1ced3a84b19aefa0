"""How do a model, a prompt and noise become latents? One denoiser and one loop for everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.denoiser import Denoise, denoiser
from reverie.diffusion.guidance import consistency, guided, linear, rescaled, thresholded, together
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import SAMPLERS
from reverie.diffusion.schedule import to_ve, to_vp
from reverie.diffusion.spacings import SPACINGS
from reverie.diffusion.step import Sigmas, Step
from reverie.generate.requests import TextToImage
from reverie.system import Conditioning, StableDiffusion

# Dynamic thresholding wants the range of clean data. Scaled latents have unit variance: 99.7 % lie within 3.
LATENT_BOUND = 3.0


def guided_denoiser(
    system: StableDiffusion, request: TextToImage, positive: Conditioning, negative: Conditioning
) -> Denoise:
    """Build denoise(x, sigma) towards `positive` and away from `negative`, by the request's guidance.

    Guidance of 1 asks nothing of the negative prompt, and the U-Net is then run once a step instead of twice.
    """
    if request.guidance == 1:
        predict = system.network(positive)
    else:
        mix = linear(request.guidance)
        if request.guidance_rescale:
            mix = rescaled(request.guidance, request.guidance_rescale)
        predict = guided(together(system.network(negative.cat(positive))), mix)
    denoise = denoiser(predict, system.schedule, system.prediction.scalings)
    if request.sampler == "lcm":
        denoise = consistency(denoise, system.schedule)
    if request.threshold is not None:
        denoise = thresholded(denoise, request.threshold, LATENT_BOUND)
    return denoise


def noise_levels(system: StableDiffusion, request: TextToImage) -> Sigmas:
    """Return the noise levels that a request visits, falling."""
    return SPACINGS[request.schedule](system.schedule, request.steps)


@torch.no_grad()
def sample(
    denoise: Denoise, sigmas: Sigmas, noise: Noise, sampler: str, init: Float[Tensor, "b c h w"] | None = None
) -> Iterator[Step]:
    """Denoise from sigmas[0] to sigmas[-1] and yield every step; the last step's x is the finished latents.

    Starts from noise alone, or from `init` (clean latents) with noise added.
    """
    first = sigmas[0].item()
    x = to_ve(noise.initial(), first) if init is None else init + first * noise.initial()
    for step in SAMPLERS[sampler](denoise, x, sigmas, noise):
        yield replace(step, x=to_vp(step.x, step.sigma)) if step.index == step.total - 1 else step
