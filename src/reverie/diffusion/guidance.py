"""Guidance: classifier-free guidance and its kin, combinators that take denoisers (or networks) and return one.

A denoiser D(x, sigma) is affine in its network's F(x_vp, t), with the same coefficients under every prompt; so linear
guidance may be applied to either. `linear_rescaled` is not linear: apply it to the network, as its authors and
diffusers do. Inpainting masks, the switch to a refiner and further channels are combinators too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.diffusion.denoiser import Denoise, Level, Network
from reverie.diffusion.schedule import Schedule, to_vp

Predict = Callable[[Tensor, Any], Tensor]
"""(x "b ...", t "b" or sigma) -> prediction "b ...": a Network or a Denoise."""

PredictPair = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
"""(x "b ...", t "b" or sigma) -> the unconditional and the conditional prediction."""

Mix = Callable[[Tensor, Tensor], Tensor]
"""(unconditional, conditional) -> the guided prediction."""


def guide(predict: PredictPair, mix: Mix) -> Predict:
    """Answer with the mixture of the two predictions: `guide(together(network), linear(7.5))`."""

    def prediction(x: Tensor, level: Any) -> Tensor:
        return mix(*predict(x, level))

    return prediction


def together(predict: Predict, weights: Sequence[float] = (1.0,)) -> PredictPair:
    """Make all predictions in one call on the batch [x, x, ...], whose first x must be conditioned on nothing.

    The others, one for each weight, are the parts that `compose` joins.
    """
    count = len(weights) + 1

    def pair(x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        unconditional, *conditional = predict(torch.cat([x] * count), _repeat(level, count)).chunk(count)
        return unconditional, compose(unconditional, conditional, weights)

    return pair


def apart(unconditional: Predict, conditional: Predict, weights: Sequence[float] = (1.0,)) -> PredictPair:
    """Make the predictions in two calls, which takes less memory; the second makes those of all parts."""
    count = len(weights)

    def pair(x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        nothing = unconditional(x, level)
        parts = conditional(torch.cat([x] * count), _repeat(level, count)).chunk(count)
        return nothing, compose(nothing, parts, weights)

    return pair


def beside_blind(predict: PredictPair, blind: Predict, scale: float) -> PredictPair:
    """Lead by a picture that `predict` sees and `blind`, conditioned on nothing else, does not.

    (scale - 1)(e(picture) - e(nothing)) is added to both predictions, so that mixing them linearly gives the two
    guidances of Brooks et al. 2211.09800, eq. 3.
    """

    def pair(x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        unconditional, conditional = predict(x, level)
        lead = (scale - 1) * (unconditional - blind(x, level))
        return unconditional + lead, conditional + lead

    return pair


def beside_perturbed(
    predict: PredictPair, perturbed: Predict, scale: float, weights: Sequence[float] = (1.0,)
) -> PredictPair:
    """Lead away from what `perturbed` predicts for the parts of the prompt, in whose attention places see themselves.

    scale (c - perturbed) is added to both predictions, so that mixing them linearly gives u + guidance (c - u) and the
    perturbed-attention guidance of Ahn et al. 2403.17377, eq. 10.
    """

    def pair(x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        unconditional, conditional = predict(x, level)
        parts = perturbed(torch.cat([x] * len(weights)), _repeat(level, len(weights))).chunk(len(weights))
        lead = scale * (conditional - compose(unconditional, parts, weights))
        return unconditional + lead, conditional + lead

    return pair


def alone(predict: Predict) -> PredictPair:
    """Give one prediction for both: to be guided by other means than the prompt."""

    def pair(x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        prediction = predict(x, level)
        return prediction, prediction

    return pair


def renoising_scale(strength: float, sigma: float, following: float) -> float:
    """Return the scale by which Euler's step from a level to the next is that of CFG++ (Chung et al. 2406.08070).

    CFG++ goes to x0(u + strength (c - u)) and takes the noise along that is seen without a prompt: with r = following /
    sigma, x' = x0_u + strength (x0_c - x0_u) + r (x - x0_u). Euler's x' = (1 - r) x0 + r x is the same for a
    guidance of strength / (1 - r).
    """
    return strength / (1 - following / sigma)


def _repeat(level: Any, count: int) -> Any:
    return torch.cat([level] * count) if isinstance(level, Tensor) and level.ndim else level


def compose(unconditional: Tensor, conditional: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Join predictions for parts of a prompt: u + sum of w_i (c_i - u) (Liu et al. 2206.01714, eq. 11)."""
    if tuple(weights) == (1.0,):
        return conditional[0]
    return unconditional + sum(w * (c - unconditional) for w, c in zip(weights, conditional, strict=True))


def linear(scale: float) -> Mix:
    """Mix as classifier-free guidance does: u + scale (c - u) (Ho and Salimans 2207.12598, eq. 6, scale = 1 + w)."""

    def mix(unconditional: Tensor, conditional: Tensor) -> Tensor:
        return unconditional + scale * (conditional - unconditional)

    return mix


def linear_rescaled(scale: float, phi: float) -> Mix:
    """Mix linearly, then go phi of the way to the conditional's deviation (Lin et al. 2305.08891, section 3.4)."""
    plain = linear(scale)

    def mix(unconditional: Tensor, conditional: Tensor) -> Tensor:
        both = plain(unconditional, conditional)
        return both * (1 - phi + phi * _deviation(conditional) / _deviation(both))

    return mix


def within(inside: Denoise, outside: Denoise, highest: float, lowest: float) -> Denoise:
    """Ask one denoiser from the noise level `highest` down to `lowest`, both included, and another beyond them.

    Guided inside and unguided outside, guidance costs nothing where it helps least (Kynkaanniemi et al. 2404.07724,
    eq. 5).
    """

    def prediction(x: Float[Tensor, "b ..."], sigma: Level) -> Float[Tensor, "b ..."]:
        return inside(x, sigma) if lowest <= sigma <= highest else outside(x, sigma)

    return prediction


def dynamic_thresholding(denoise: Denoise, percentile: float = 0.995, bound: float = 1.0) -> Denoise:
    """Keep x0 within [-bound, bound] by Imagen's dynamic thresholding (Saharia et al. 2205.11487, section 2.3).

    s is the percentile of |x0| in a sample, at least bound; x0 is clipped to [-s, s] and shrunk by bound / s.
    """

    def prediction(x: Float[Tensor, "b ..."], sigma: Level) -> Float[Tensor, "b ..."]:
        x0 = denoise(x, sigma)
        s = torch.quantile(x0.abs().flatten(1), percentile, dim=1).clamp(min=bound)
        s = s.view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-s, s) * (bound / s)

    return prediction


def consistency(
    denoise: Denoise, schedule: Schedule, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> Denoise:
    """Make a denoiser keep the boundary condition of a consistency model, x0(x, t = 0) = x (Luo et al. 2310.04378).

    With s = timestep_scaling t: c_skip = sigma_data^2 / (s^2 + sigma_data^2), c_out = s / sqrt(s^2 + sigma_data^2).
    """

    def prediction(x: Float[Tensor, "b ..."], sigma: Level) -> Float[Tensor, "b ..."]:
        s = timestep_scaling * schedule.sigma_to_t(sigma)
        c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s / (s**2 + sigma_data**2).sqrt()
        return c_skip * to_vp(x, sigma) + c_out * denoise(x, sigma)

    return prediction


def _deviation(x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)


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
    """Give a network its further channels: of inpainting the mask and the latents of the picture without what it hides.

    One that edits a picture is given its latents. `extra` is repeated over the rows, which are a multiple of its own.
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
