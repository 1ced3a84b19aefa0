"""A decoder that forgives, and pictures of twice the size, from the latents that a U-Net has learned already.

The autoencoder gets one level more at the outside: its decoder draws 2 x 2 pixels where it drew one, and its encoder
gives, of the larger scene, today's latents of the halved one. What a U-Net learned of these latents stays valid.

The decoder learns from what a sampler will hand it: one-step predictions of noised latents beside clean ones, with the
scene as target, so that the small errors of predicted latents are not drawn as blotches. Where captions say all that
scenes show, latents that the model draws of them from noise alone serve as well: the decoder learns to mend what the
U-Net misremembers. Loss: L1, and the distance of normalised ImageNet features (as LPIPS, Zhang et al. 2018, with
EfficientNet-Lite0 and all channel weights 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from reverie import system
from reverie.checkpoints.load import Components
from reverie.checkpoints.save import save_autoencoder
from reverie.codecs.image import to_pictures
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.diffusion.denoiser import PREDICTIONS, Scalings, denoiser
from reverie.diffusion.guidance import guide, linear, together
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import dpmpp_2m
from reverie.diffusion.spacings import karras
from reverie.errors import choose
from reverie.media.pictures import grid
from reverie.models.autoencoder import Autoencoder
from reverie.models.lpips import FeatureDistance
from reverie.requests.base import MAX_SEED
from reverie.train.adversarial import AdversarialSettings, discriminator_loss, generator_term
from reverie.train.autoencoder import as_images, require_kl
from reverie.train.examples import HELD_OUT_SEED, Scenes
from reverie.train.imagenet import perceptual_features
from reverie.train.inputs import SceneSettings
from reverie.train.kept import is_kept, keep, read_tensor
from reverie.train.latents import ENCODER, LATENTS, latent_pool
from reverie.train.loop import step_generator
from reverie.train.recipe import Share, section

PREDICTED = "predicted.safetensors"
AT_ONCE, SHOWN = 16, 16
SCALE = 2
STEM = ("encoder.conv_in.", "encoder.down_blocks.0.")  # what the enlarged encoder has that the old one had not
DECODER = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True)
class EnlargeSettings(AdversarialSettings):
    """Choose the model whose latents are drawn, the level that is added, and how the decoder learns."""

    base: str  # a whole model; its autoencoder gives the latents, its U-Net predicts them
    width: NonNegativeInt = 16  # channels of the new level; 0 adds none, and trains the decoder alone
    crop: PositiveInt = 10  # side of the squares that are learned from, in latents
    batch: PositiveInt = 4
    predicted: Share = 0.75  # of the latents are one-step predictions, at timesteps from `first` to `last`
    first: int = 20
    last: int = 800
    steps: NonNegativeInt = 0  # in which predicted latents are drawn from noise alone, guided; 0 predicts them in one
    guidance: NonNegativeFloat | None = None  # of that drawing; what the model recommends if not given
    perceptual: NonNegativeFloat = 0.25
    perceptual_start: NonNegativeInt = 0  # the step from which it counts
    adversarial_layers: PositiveInt = field(default=3, kw_only=True)


class EnlargeObjective:
    """Train the decoder of an autoencoder to draw scenes from their latents.

    Where `small` is the one that it enlarges, which says what to give, the stem of its encoder learns as well.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        small: Autoencoder | None,
        scenes: Scenes,
        latents: Float[Tensor, "n 2 c h w"],
        settings: EnlargeSettings,
        seed: int,
    ) -> None:
        autoencoder.requires_grad_(False)
        self.averaged = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.small, self.scenes, self.latents = small, scenes, latents
        self.networks = nn.ModuleDict({"autoencoder": autoencoder})
        if settings.adversarial:
            self.networks["discriminator"] = settings.discriminator()
        self.settings, self.seed = settings, seed
        self.distance = FeatureDistance(perceptual_features())
        self.batches = Batches(self._item, settings.batch)
        for parameters in self.groups().values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _item(self, index: int) -> tuple[Tensor, np.ndarray]:
        """Return a square of latents, predicted or clean, and the square of the scene behind them."""
        rng = np.random.default_rng((self.seed, index))
        number, clean = int(rng.integers(len(self.latents))), int(rng.random() >= self.settings.predicted)
        crop, factor = self.settings.crop, self.averaged.factor
        y, x = (int(v) for v in rng.integers(self.latents.shape[-1] - crop + 1, size=2))
        picture = self.scenes.picture(number)
        part = picture[factor * y : factor * (y + crop), factor * x : factor * (x + crop)]
        z = self.latents[number, clean, :, y : y + crop, x : x + crop].float() / self.averaged.config.scaling_factor
        return z, np.ascontiguousarray(part.transpose(2, 0, 1))

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that learn: the decoder's, and what of the encoder does."""
        learning = {"decoder": DECODER} | ({"stem": STEM} if self.small else {})
        named = list(self.averaged.named_parameters())
        groups = {
            group: [parameter for name, parameter in named if name.startswith(prefixes)]
            for group, prefixes in learning.items()
        }
        if self.settings.adversarial:
            groups["discriminator"] = list(self.networks["discriminator"].parameters())
        return groups

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the decoder's loss, the discriminator's where its time has come, and the stem's where it learns."""
        z, pixels = self.batches(step, part)
        images = as_images(pixels)
        decoded = self.averaged.decode(z)
        loss = (decoded - images).abs().mean()
        metrics = {"l1": loss.item()}
        if step >= self.settings.perceptual_start:
            perceptual = self.distance(decoded, images).mean()
            loss, metrics["perceptual"] = loss + self.settings.perceptual * perceptual, perceptual.item()
        if due := self.settings.is_due(step):
            last = self.averaged.decoder_last_weight()
            term, found = generator_term(self.networks["discriminator"], decoded, loss, last)
            loss, metrics = loss + self.settings.adversarial * term, metrics | found
        yield "decoder", loss, metrics
        if due:
            yield "discriminator", *discriminator_loss(self.networks["discriminator"], images, decoded)
        if self.small is not None:
            target = self.small.encoder.conv_in(F.avg_pool2d(images, SCALE))
            loss = (stem(self.averaged, images) - target).square().mean() / target.var()
            yield "stem", loss, {"stem": loss.item()}

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Show scenes of the pool above what is drawn of their predicted latents."""
        picked = torch.arange(SHOWN) * (len(self.latents) // SHOWN)
        real = torch.stack([_image(self.scenes, int(i)) for i in picked])
        drawn = self.averaged.decode(self.latents[picked, 0].float() / self.averaged.config.scaling_factor)
        rows = [row for pair in zip(real.split(8), drawn.split(8), strict=True) for row in pair]
        return grid(to_pictures(torch.cat(rows).clamp(-1, 1)), columns=8)

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """Return the PSNR of held-out scenes, in dB, and how far a new stem's latents are from those of the half."""
        held_out = replace(self.scenes, seed=HELD_OUT_SEED)
        images = torch.stack([_image(held_out, index) for index in range(SHOWN)])
        latents = self.averaged.encode(images).mode()
        error = (self.averaged.decode(latents).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
        measured = {"held_out_psnr": (-10 * error.log10()).mean().item()}
        if self.small is None:
            return measured
        small = self.small.encode(F.avg_pool2d(images, SCALE)).mode()
        return measured | {"latent_error": ((latents - small).square().mean() / small.var()).item()}

    def export(self, folder: Path) -> None:
        """Save the autoencoder."""
        save_autoencoder(self.averaged, folder)


def enlarge_decoder(small: Autoencoder, width: int) -> Autoencoder:
    """Return an autoencoder with one level more outside, which draws as the small one does, its pixels repeated.

    Its encoder is the small one's but for a new stem, which has yet to learn.
    """
    config = small.config
    widths = (width, *config.block_out_channels)
    if width != widths[1]:
        raise ValueError(f"a new level of {width} channels cannot take over weights for {widths[1]}")
    large = Autoencoder(replace(config, block_out_channels=widths, sample_size=SCALE * config.sample_size))
    state, levels = large.state_dict(), len(config.block_out_channels)
    for name, value in small.state_dict().items():
        parts = name.split(".")
        if parts[1] == "down_blocks":
            parts[2] = str(int(parts[2]) + 1)
        if not name.startswith("encoder.conv_in."):
            state[".".join(parts)] = value
    large.load_state_dict(state)
    with torch.no_grad():
        names = [f"decoder.up_blocks.{levels - 1}.upsamplers.0.conv", "encoder.down_blocks.0.downsamplers.0.conv"]
        for name in names:
            nn.init.dirac_(large.get_parameter(f"{name}.weight"))
            nn.init.zeros_(large.get_parameter(f"{name}.bias"))
        for name, parameter in large.named_parameters():
            if name.startswith((f"decoder.up_blocks.{levels}.", "encoder.down_blocks.0.")) and ".conv2." in name:
                nn.init.zeros_(parameter)
        large.encoder.conv_in.load_state_dict(small.encoder.conv_in.state_dict())
    return large


def same_latents(small: Autoencoder, large: Autoencoder) -> bool:
    """Tell whether `large` is an enlarged `small`: its encoder's weights but for the stem are the same."""
    if large.config.block_out_channels[1:] != small.config.block_out_channels:
        return False
    state, theirs = enlarge_decoder(small, large.config.block_out_channels[0]).state_dict(), large.state_dict()
    names = [name for name in theirs if name.startswith(ENCODER) and not name.startswith(STEM)]
    return small.config.scaling_factor == large.config.scaling_factor and all(
        torch.equal(state[name], theirs[name]) for name in names
    )


def stem(autoencoder: Autoencoder, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Return what the encoder's outermost level makes of images."""
    return autoencoder.encoder.down_blocks[0](autoencoder.encoder.conv_in(images))


@torch.no_grad()
def predictions(
    base: Components, scenes: Scenes, latents: Tensor, settings: EnlargeSettings, seed: int, path: Path
) -> Float[Tensor, "n 2 c h w"]:
    """Return for each of the latents what the model predicts in its place, and itself; kept at `path`.

    Predicted is in one step from a noised state, or from its caption alone, which must say all that the scene shows.
    """
    unet = base.unet.eval()
    weights = sum(float(p.abs().sum()) for p in unet.parameters())  # tells one U-Net from another
    way = [settings.steps, settings.guidance] if settings.steps else [settings.first, settings.last]
    made_of = json.dumps([weights, list(scenes.identity), seed, *way], ensure_ascii=False)
    if not is_kept(made_of, path):
        predict, rows = _draw_of if settings.steps else _one_step, []
        for start in range(0, len(latents), AT_ONCE):
            x0, generator = latents[start : start + AT_ONCE].float(), step_generator(seed, start)
            captions = [scenes.caption(index, 0) for index in range(start, start + len(x0))]
            rows.append(torch.stack([predict(base, x0, captions, generator, settings), x0], 1).half())
        keep(torch.cat(rows), made_of, path)
    return read_tensor(path)


def _one_step(
    base: Components, x0: Tensor, captions: list[str], generator: torch.Generator, settings: EnlargeSettings
) -> Tensor:
    """Predict x0 in one step from itself with noise."""
    schedule = base.schedule_config.schedule()
    t = torch.randint(settings.first, settings.last + 1, (1,), generator=generator)
    sigma = schedule.t_to_sigma(t)[0]
    noised = x0 + sigma.to(x0) * torch.randn(x0.shape, generator=generator)
    network = partial(base.unet, context=read_captions(base, captions))
    return denoiser(network, schedule, find_scalings(base))(noised, sigma)


def _draw_of(
    base: Components, x0: Tensor, captions: list[str], generator: torch.Generator, settings: EnlargeSettings
) -> Tensor:
    """Draw what captions say, from noise, with guidance."""
    guidance = base.guidance if settings.guidance is None else settings.guidance
    schedule, count = base.schedule_config.schedule(), len(captions)
    context = torch.cat([read_captions(base, [""] * count), read_captions(base, captions)])
    predict = guide(together(partial(base.unet, context=context)), linear(guidance))
    sigmas = karras(schedule, settings.steps)
    noise = Noise(torch.randint(MAX_SEED, (count,), generator=generator).tolist(), x0.shape[1:])
    x = sigmas[0].to(x0) * noise.initial()
    *_, last = dpmpp_2m(denoiser(predict, schedule, find_scalings(base)), x, sigmas, noise)
    return last.x


def find_scalings(base: Components) -> Callable[..., Scalings]:
    """Return how a model's U-Net is scaled."""
    return choose("prediction", base.schedule_config.prediction, PREDICTIONS).scalings


def read_captions(base: Components, captions: list[str]) -> Float[Tensor, "b l d"]:
    """Return what a model's text encoder makes of captions."""
    return base.text_encoders[0](base.tokenizers[0](captions)).last


def _image(scenes: Scenes, index: int) -> Float[Tensor, "3 h w"]:
    return as_images(torch.from_numpy(scenes.picture(index).transpose(2, 0, 1).copy())[None])[0]


def build(sections: dict[str, Any], seed: int, out: Path) -> EnlargeObjective:
    """Build the objective from a recipe's tables [enlarge] and [scenes]."""
    settings, scenes = section(sections, "enlarge", EnlargeSettings), section(sections, "scenes", SceneSettings)
    base = Components(**vars(system.load(settings.base, device="cpu", dtype="float32", fast=False)))
    small = require_kl(base.autoencoder).requires_grad_(False)
    shown = scenes.open(scenes.seed or seed, base.unet.config.sample_size * small.factor)
    torch.manual_seed(seed)
    latents = latent_pool(small, shown, out / LATENTS)
    pairs = predictions(base, shown, latents, settings, seed, out / PREDICTED)
    if not settings.width:
        return EnlargeObjective(small, None, shown, pairs, settings, seed)
    large, drawn = enlarge_decoder(small, settings.width), replace(shown, scale=SCALE * shown.scale)
    return EnlargeObjective(large, small, drawn, pairs, settings, seed)
