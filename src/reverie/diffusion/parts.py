"""Inpainting masks, the handover to a refiner, and networks with further channels, as combinators of denoisers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.denoiser import Denoise, Level, Network


def hold_known(
    denoise: Denoise,
    mask: Float[Tensor, "b 1 h w"],
    known: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    below: float,
) -> Denoise:
    """Leave `known` where the mask is 0: there the denoiser sees it under the noise `eps`, and answers with it.

    So do diffusers' pipelines for inpainting with a model of 4 channels. At levels of `below` and more the noisy input
    stays as it is, which is how they start from noise alone.
    """

    def prediction(x: Float[Tensor, "b c h w"], sigma: Level) -> Float[Tensor, "b c h w"]:
        if sigma < below:
            x = torch.where(mask > 0, x, known + sigma * eps)
        return torch.where(mask > 0, denoise(x, sigma), known)

    return prediction


def concatenate_channels(network: Network, extra: Float[Tensor, "b e h w"]) -> Network:
    """Give an inpainting network its further channels: the mask, and the latents of the picture without what it hides.

    `extra` is repeated over the rows, which are a multiple of its own.
    """

    def predict(x: Float[Tensor, "rows c h w"], t: Float[Tensor, " rows"]) -> Float[Tensor, "rows c h w"]:
        return network(torch.cat([x, extra.to(x).repeat(len(x) // len(extra), 1, 1, 1)], dim=1), t)

    return predict


def switch_at(first: Denoise, second: Denoise, level: float) -> Denoise:
    """Ask one denoiser at noise levels of `level` and more, and another below: SDXL's base and its refiner.

    The sampler knows of one denoiser alone, so a multistep one keeps its past over the change (Podell et al.
    2307.01952, section 2.5).
    """

    def prediction(x: Float[Tensor, "b ..."], sigma: Level) -> Float[Tensor, "b ..."]:
        return first(x, sigma) if sigma >= level else second(x, sigma)

    return prediction
