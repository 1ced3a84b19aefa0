"""The adversarial term of decoders: a patch discriminator and the weight that balances it with what else is learned.

Source: Rombach et al. 2022, appendix G; the adaptive weight is equation 7 of Esser et al. 2021 (VQGAN).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from reverie.models.discriminator import PatchGAN, PatchGANConfig
from reverie.train.parallel import mean_of_ranks


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """Weigh the adversarial term of a decoder, and describe the discriminator."""

    adversarial: NonNegativeFloat = 0.0  # its share; 0 has no discriminator
    adversarial_start: NonNegativeInt = 0  # the step from which the discriminator has a say
    adversarial_width: PositiveInt = 32
    adversarial_layers: PositiveInt = 2

    def discriminator(self) -> PatchGAN:
        """Make a discriminator, channels last in memory."""
        config = PatchGANConfig(width=self.adversarial_width, layers=self.adversarial_layers)
        return PatchGAN(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def is_due(self, step: int) -> bool:
        """Tell whether the discriminator has a say at a step."""
        return self.adversarial > 0 and step >= self.adversarial_start


def generator_term(
    discriminator: nn.Module, decoded: Float[Tensor, "b 3 h w"], nll: Tensor, last: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the decoder's adversarial loss, weighted to pull at its last weight W as hard as `nll`; and metrics."""
    loss = -discriminator(decoded).mean()
    weight = adaptive_weight(nll, loss, last)
    return weight * loss, {"generator": loss.item(), "weight": weight.item()}


def discriminator_loss(
    discriminator: nn.Module, images: Float[Tensor, "b 3 h w"], decoded: Float[Tensor, "b 3 h w"]
) -> tuple[Tensor, dict[str, float]]:
    """Return the discriminator's hinge loss of real images and decoded ones; and metrics."""
    real, fake = discriminator(images), discriminator(decoded.detach())
    loss = hinge(real, fake)
    return loss, {"hinge": loss.item(), "real": real.mean().item(), "fake": fake.mean().item()}


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss for its logits: 0 where real ones are above 1 and fake ones below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(nll: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """Return |d nll / d W| / (|d adversarial / d W| + 1e-4), at most 1e4, for the decoder's last weight W.

    Source: Esser et al. 2021 (VQGAN), equation 7.
    """
    (of_nll,) = torch.autograd.grad(nll, last, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    of_nll, of_adversarial = mean_of_ranks(of_nll), mean_of_ranks(of_adversarial)
    return (of_nll.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, 1e4).detach()
