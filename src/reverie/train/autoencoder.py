"""Training of the autoencoder: L1 + perceptual + patch-adversarial + KL, as CompVis' LPIPSWithDiscriminator.

Source: Rombach et al. 2022, appendix G; CompVis/latent-diffusion, ldm/modules/losses/contperceptual.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from reverie.checkpoints.load import load_autoencoder
from reverie.checkpoints.save import save_autoencoder
from reverie.codecs.image import to_pictures
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import crop_at
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.errors import ReverieError
from reverie.media.pictures import grid
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig, ImageAutoencoder
from reverie.models.lpips import FeatureDistance
from reverie.sound.spectrogram import SpectrogramParams
from reverie.train.adversarial import AdversarialSettings, discriminator_loss, generator_term
from reverie.train.classifier import load_features
from reverie.train.examples import HELD_OUT_SEED, Examples, Scenes
from reverie.train.loop import step_generator
from reverie.train.recipe import section
from reverie.train.sources import HELD_OUT, Crops, ExampleSource

SHOWN, COLUMNS = 16, 8  # held-out pictures on the contact sheet


@dataclass(frozen=True)
class DataSettings(ExampleSource):
    """Choose the pictures, emoji scenes where no other source is given: crops of `crop` pixels, `batch` a step."""

    subset: str = "common"
    crop: PositiveInt = 64
    batch: PositiveInt = 16
    workers: NonNegativeInt = 0


@dataclass(frozen=True)
class LossSettings(AdversarialSettings):
    """Weigh the terms; 0 leaves one out (and its network unbuilt)."""

    l2: float = 0.0  # beside L1, as in Stability's ft-MSE decoder
    perceptual: float = 0.0
    features: str = ""  # folder of a trained classifier whose features measure likeness
    kl: float = 1e-6
    initial: str = ""  # folder of an autoencoder to start from
    decoder_only: bool = False  # keep the encoder, so that latents made already stay valid


def as_images(pixels: Tensor) -> Float[Tensor, "b 3 h w"]:
    """Bring uint8 pixels to [-1, 1], channels last in memory."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class AutoencoderObjective:
    """Train an autoencoder, and against it a patch discriminator once its time has come."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        make: Callable[[int], np.ndarray],
        held_out: Examples,
        data: DataSettings,
        loss: LossSettings,
        seed: int,
    ) -> None:
        self.averaged = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks = nn.ModuleDict({"autoencoder": autoencoder})
        if loss.adversarial:
            self.networks["discriminator"] = loss.discriminator()
        self.features = load_features(Path(loss.features)) if loss.perceptual else None
        self.distance = None if self.features is None else FeatureDistance(self.features.features)
        self.batches = Batches(make, data.batch, data.workers)
        self.loss, self.seed, self.make, self.held_out = loss, seed, make, held_out

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        for _, network in self.all_networks():
            network.to(device)

    def all_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the networks, and the features that measure likeness."""
        yield from self.networks.items()
        if self.features is not None:
            yield "features", self.features

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the autoencoder's (or only its decoder's) parameters, and the discriminator's."""
        trained = [
            parameter
            for name, parameter in self.averaged.named_parameters()
            if not self.loss.decoder_only or name.startswith(("decoder.", "post_quant_conv."))
        ]
        groups = {"autoencoder": trained}
        if self.loss.adversarial:
            groups["discriminator"] = list(self.networks["discriminator"].parameters())
        return groups

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the autoencoder's loss, then the discriminator's."""
        autoencoder = self.averaged
        images = as_images(self.batches(step, part).to(autoencoder.device))
        with torch.set_grad_enabled(not self.loss.decoder_only):
            posterior = autoencoder.encode(images)
        noise = part.randn_like(posterior.mean, step_generator(self.seed, step))
        decoded = autoencoder.decode(posterior.sample(noise.to(images.device)))
        difference = decoded - images
        reconstruction = difference.abs() + self.loss.l2 * difference.square()
        metrics = {"l1": difference.detach().abs().mean().item(), "l2": difference.detach().square().mean().item()}
        if self.distance is not None:
            distance = self.distance(decoded, images)
            metrics["perceptual"] = distance.mean().item()
            reconstruction = reconstruction + self.loss.perceptual * distance[:, None, None, None]
        nll = reconstruction.sum() / len(images)
        kl = posterior.kl().mean()
        loss = nll + self.loss.kl * kl
        if due := self.loss.is_due(step):
            last = autoencoder.decoder_last_weight()
            term, found = generator_term(self.networks["discriminator"], decoded, nll, last)
            loss, metrics = loss + self.loss.adversarial * term, metrics | found
        yield "autoencoder", loss / images[0].numel(), metrics | {"kl": kl.item() / posterior.mean[0].numel()}
        if due:
            yield "discriminator", *discriminator_loss(self.networks["discriminator"], images, decoded)

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Show held-out pictures above their reconstructions."""
        images = self._held_out_images(SHOWN)
        decoded = self.averaged.decode(self.averaged.encode(images).mode())
        rows = [row for pair in zip(images.split(COLUMNS), decoded.split(COLUMNS), strict=True) for row in pair]
        return grid(to_pictures(torch.cat(rows).clamp(-1, 1)), columns=min(COLUMNS, len(images)))

    def export(self, folder: Path) -> None:
        """Save the autoencoder; a new encoder's scale is set so that its latents have unit variance."""
        if not self.loss.decoder_only:
            scale = measured_scale(self.averaged, self._held_out_images(HELD_OUT))
            self.averaged.config = replace(self.averaged.config, scaling_factor=scale)
        save_autoencoder(self.averaged, folder)

    def _held_out_images(self, count: int) -> Float[Tensor, "b 3 h w"]:
        pictures = [self.held_out.picture(index) for index in range(min(count, len(self.held_out)))]
        return as_images(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.averaged.device))


def require_kl(autoencoder: ImageAutoencoder) -> Autoencoder:
    """Return an AutoencoderKL as it is. Raises ReverieError for a tiny one, which nothing here trains."""
    if not isinstance(autoencoder, Autoencoder):
        raise ReverieError("a tiny autoencoder (TAESD) was given; give an AutoencoderKL")
    return autoencoder


@torch.no_grad()
def initialise_(autoencoder: Autoencoder) -> None:
    """Start a small autoencoder so that it learns in few steps.

    Convolutions keep the variance (He et al. 2015, gain 1), residual branches start at 0 (Goyal et al. 2017), and the
    posterior starts narrow, or its noise hides the image. With torch's own start the same run is three times as slow.
    """
    for name, module in autoencoder.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
    channels, moments = autoencoder.config.latent_channels, autoencoder.quant_conv
    if isinstance(moments, nn.Conv2d) and moments.bias is not None:
        moments.weight[channels:] *= 0.1
        moments.bias[channels:] = -6


@torch.no_grad()
def measured_scale(autoencoder: Autoencoder, images: Float[Tensor, "b 3 h w"]) -> float:
    """Return one over the standard deviation of the latents (Rombach et al. 2022, appendix D.1)."""
    return 1 / autoencoder.encode(images).mode().std().item()


def build(sections: dict[str, Any], seed: int, out: Path) -> AutoencoderObjective:
    """Build the objective from a recipe's tables [model], [data], [spectrogram] and [loss]."""
    data, loss = section(sections, "data", DataSettings), section(sections, "loss", LossSettings)
    torch.manual_seed(seed)
    if loss.initial:
        autoencoder = require_kl(load_autoencoder(Path(loss.initial)))
    else:
        autoencoder = Autoencoder(section(sections, "model", AutoencoderConfig))
        initialise_(autoencoder)
    return AutoencoderObjective(autoencoder, *_pictures(sections, data, autoencoder, seed), data, loss, seed)


def _pictures(
    sections: dict[str, Any], data: DataSettings, autoencoder: Autoencoder, seed: int
) -> tuple[Callable[[int], np.ndarray], Examples]:
    """Return what serves crop n, and pictures that are not learned from."""
    if data.named:
        size, params = autoencoder.config.sample_size, section(sections, "spectrogram", SpectrogramParams)
        return Crops(data.open(seed, size, params), seed, data.crop), data.open_held_out(size, params)
    things = concepts(data.subset)
    return lambda index: crop_at(things, seed, index, data.crop), Scenes(things, HELD_OUT_SEED, HELD_OUT)
