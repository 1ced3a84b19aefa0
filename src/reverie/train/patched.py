"""A patched autoencoder: one level in place of the outermost ones of a trained autoencoder, in half of the time.

The channels of one place are then the colours of a patch of pixels (`AutoencoderConfig.patch_size`). Of either half the
coarse levels stay as they are, so that latents stay valid; its new level learns to do what the levels did that it
replaces, as seen by the large autoencoder (distillation, Hinton et al. 1503.02531): what a few-step U-Net draws of
captions to decode, that and flat shapes, as people sketch, to encode; of a model of music real spectrograms in place of
shapes. Loss: L1 of pixels, of their differences, and of the rim once more, which new convolutions leave to be seen;
squares for the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from pydantic import PositiveInt
from torch import Tensor, nn

from reverie import system
from reverie.checkpoints.load import Components
from reverie.checkpoints.save import save_autoencoder
from reverie.codecs.image import to_levels, to_pictures
from reverie.corpora.captions import with_article
from reverie.corpora.concepts import Concept, concepts
from reverie.corpora.scenes import COLOURS
from reverie.data.loader import WHOLE, BatchPart
from reverie.diffusion.denoiser import denoiser
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import euler
from reverie.diffusion.spacings import trailing
from reverie.errors import ReverieError
from reverie.media.pictures import grid
from reverie.models.autoencoder import Autoencoder
from reverie.requests.base import MAX_SEED
from reverie.train.autoencoder import as_images, require_kl
from reverie.train.enlarge import find_scalings, read_captions
from reverie.train.loop import step_generator
from reverie.train.recipe import section
from reverie.train.sources import ComposedMusic

HELD_OUT = 16
SHAPES = 6  # of a sketch at most
DIFFERENCES = 0.5  # weight of the loss of pixels' differences
RIM, RIM_WIDTH = 0.25, 2  # weight of the loss of so many pixels along the sides


@dataclass(frozen=True)
class PatchedSettings:
    """Choose the model whose autoencoder is patched, and what it learns from."""

    base: str  # a whole model of few steps
    autoencoder: str = ""  # folder of the autoencoder that is patched, if not the base's
    subset: str = "everyday"  # of the things that are drawn
    patch_size: PositiveInt = 2  # a power of two
    count: PositiveInt = 300  # pictures, and as many sketches or spectrograms
    batch: PositiveInt = 4


class PatchedObjective:
    """Train the outer level of a patched autoencoder, and measure it on the last of latents and sketches."""

    @torch.no_grad()
    def __init__(
        self,
        own: Autoencoder,
        patch_size: int,
        latents: Float[Tensor, "n c h w"],
        sketches: UInt8[Tensor, "m 3 hf wf"],
        batch: int,
        seed: int,
    ) -> None:
        self.own = own.requires_grad_(False)
        self.averaged = patch(own, patch_size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks = nn.ModuleDict({"autoencoder": self.averaged})
        self.batch, self.seed, self.levels = batch, seed, len(self.averaged.config.block_out_channels)
        self.latents = latents.float() / own.config.scaling_factor
        self.drawn = _one_by_one(lambda z: to_levels(own.decode(z)), self.latents)
        self.decoded = _one_by_one(self._coarse, self.latents)
        self.seen = torch.cat([self.drawn[:-HELD_OUT], sketches])
        kept = len(own.config.block_out_channels) - self.levels
        outer = nn.Sequential(own.encoder.conv_in, *list(own.encoder.down_blocks)[: kept + 1])
        self.encoded = _one_by_one(lambda pixels: outer(as_images(pixels)), self.seen)
        self.variance = self.encoded.float().var().item()
        for parameters in self.groups().values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        self.own.to(device)
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that learn, of either half."""
        learning = {
            "decoder": (f"decoder.up_blocks.{self.levels - 1}.", "decoder.conv_norm_out.", "decoder.conv_out."),
            "encoder": ("encoder.conv_in.", "encoder.down_blocks.0."),
        }
        named = list(self.averaged.named_parameters())
        return {
            half: [parameter for name, parameter in named if name.startswith(prefixes)]
            for half, prefixes in learning.items()
        }

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the decoder's loss, then the encoder's."""
        generator, device = step_generator(self.seed, step), self.averaged.device
        picked = part.rows(torch.randint(len(self.drawn) - HELD_OUT, (self.batch,), generator=generator))
        # Not channels last: torch 2.13 has no way back through a GroupNorm of small images whose gradient nobody wants.
        x = self.decoded[picked].float().to(device).contiguous()
        difference = self._fine(x) - as_images(self.drawn[picked]).to(device)
        l1 = difference.abs().mean()
        edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        rim = torch.cat([side.flatten() for side in sides(difference)]).abs().mean()
        yield "decoder", l1 + DIFFERENCES * edges + RIM * rim, {"l1": l1.item(), "rim": rim.item()}
        picked = part.rows(torch.randint(len(self.seen), (self.batch,), generator=generator))
        encoder, target = self.averaged.encoder, self.encoded[picked].float().to(device)
        patches = F.pixel_unshuffle(as_images(self.seen[picked]).to(device), self.averaged.config.patch_size)
        error = (encoder.down_blocks[0](encoder.conv_in(patches)) - target).square().mean() / self.variance
        yield "encoder", error, {"error": error.item()}

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Show held-out pictures as the large autoencoder draws them, above the same latents drawn patched."""
        drawn = self._draw_held_out()
        rows = [row for pair in zip(*(x.split(8) for x in drawn), strict=True) for row in pair]
        return grid(to_pictures(torch.cat(rows)), columns=8)

    @torch.no_grad()
    def measures(self) -> dict[str, float]:
        """Return the PSNR of held-out pictures to the large autoencoder's, in dB, and the error of their latents."""
        theirs, ours = self._draw_held_out()
        wanted, given = (model.encode(theirs).mode() for model in (self.own, self.averaged))
        error = (ours - theirs).square().mean((1, 2, 3)) / 4
        latent_error = (given - wanted).square().mean() / wanted.var()
        return {"psnr": (-10 * error.log10()).mean().item(), "latent_error": latent_error.item()}

    def export(self, folder: Path) -> None:
        """Save the autoencoder."""
        save_autoencoder(self.averaged, folder)

    def _draw_held_out(self) -> tuple[Tensor, Tensor]:
        z = self.latents[-HELD_OUT:].to(self.averaged.device)
        return as_images(self.drawn[-HELD_OUT:]).to(z.device), self.averaged.decode(z).clamp(-1, 1)

    def _coarse(self, z: Tensor) -> Tensor:
        """Pass the levels of the decoder that stay as they are."""
        decoder = self.averaged.decoder
        x = decoder.mid_block(decoder.conv_in(self.averaged.post_quant_conv(z)))
        return decoder.up_blocks[: self.levels - 1](x)

    def _fine(self, x: Tensor) -> Tensor:
        """Pass the level of the decoder that learns."""
        decoder = self.averaged.decoder
        x = decoder.conv_norm_out(decoder.up_blocks[self.levels - 1](x))
        return F.pixel_shuffle(decoder.conv_out(x), self.averaged.config.patch_size)


def patch(own: Autoencoder, patch_size: int) -> Autoencoder:
    """Return an autoencoder of patches that has the coarse levels of another; the new ones have yet to learn.

    Raises ReverieError where the patches are not of the size of some levels.
    """
    config = own.config
    if patch_size not in (sizes := [2**dropped for dropped in range(1, len(config.block_out_channels) - 1)]):
        raise ReverieError(f"patch_size {patch_size} is that of no levels here; give one of {sizes}")
    dropped = patch_size.bit_length() - 1
    patched = Autoencoder(
        replace(
            config,
            in_channels=config.in_channels * patch_size**2,
            out_channels=config.out_channels * patch_size**2,
            block_out_channels=config.block_out_channels[dropped:],
            patch_size=patch_size * config.patch_size,
        )
    )
    state, theirs = patched.state_dict(), own.state_dict()
    for name, value in state.items():
        parts = name.split(".")
        if parts[:2] == ["encoder", "down_blocks"]:
            parts[2] = str(int(parts[2]) + dropped)
        if (found := theirs.get(".".join(parts))) is not None and found.shape == value.shape:
            state[name] = found.clone()
    patched.load_state_dict(state)
    return patched.requires_grad_(False)


def sides(x: Float[Tensor, "b c h w"]) -> Iterator[Tensor]:
    """Yield the pixels along the four sides, those of corners twice."""
    for turned in (x, x.mT):
        yield from (turned[..., :RIM_WIDTH], turned[..., -RIM_WIDTH:])


def _one_by_one(make: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Make something of each row, kept in half precision where it is no pixels."""
    made = [make(row) for row in rows.split(1)]
    return torch.cat([row.half() if row.is_floating_point() else row for row in made])


@torch.no_grad()
def draw_latents(
    base: Components, things: Sequence[Concept], count: int, rng: np.random.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw latents of things on grounds of named colours, in one step or two."""
    schedule, side = base.schedule_config.schedule(), base.unet.config.sample_size
    scalings = find_scalings(base)
    first, second = schedule.t_to_sigma(torch.tensor([999.0, 499.0])).unbind()
    colours, rows = list(COLOURS), []
    for index in range(count):
        names = things[int(rng.integers(len(things)))].en
        caption = f"{with_article(names[rng.integers(len(names))])} on a {rng.choice(colours)} background"
        predict = denoiser(partial(base.unet, context=read_captions(base, [caption])), schedule, scalings)
        noise = torch.from_numpy(rng.standard_normal((2, base.unet.config.in_channels, side, side))).float().split(1)
        x = predict(first * noise[0], first)
        rows.append(predict(x + second * noise[1], second) if index % 2 else x)
    return torch.cat(rows)


@torch.no_grad()
def play_latents(
    base: Components, captions: Sequence[str], shape: Sequence[int], rng: np.random.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw latents of captions, of one shape, in the steps that the model recommends. Raises ReverieError without."""
    if base.recommended.steps is None:
        raise ReverieError(f"{base.name} recommends no steps; patch the autoencoder of a model of few steps")
    schedule, scalings, rows = base.schedule_config.schedule(), find_scalings(base), []
    sigmas = trailing(schedule, base.recommended.steps)
    for caption in captions:
        noise = Noise([int(rng.integers(MAX_SEED))], shape)
        predict = denoiser(partial(base.unet, context=read_captions(base, [caption])), schedule, scalings)
        *_, last = euler(predict, sigmas[0] * noise.initial(), sigmas, noise)
        rows.append(last.x)
    return torch.cat(rows)


def draw_sketches(count: int, side: int, rng: np.random.Generator) -> UInt8[Tensor, "n 3 side side"]:
    """Draw strokes, ellipses and polygons in flat colours."""
    return torch.stack([torch.from_numpy(np.array(_sketch(side, rng))).permute(2, 0, 1) for _ in range(count)])


def _sketch(side: int, rng: np.random.Generator) -> Image.Image:
    colours = iter(rng.integers(256, size=(SHAPES + 1, 3)).tolist())
    picture = Image.new("RGB", (side, side), tuple(next(colours)))
    canvas = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, SHAPES + 1)):
        corners, colour = rng.integers(side, size=(rng.integers(3, 6), 2)), tuple(next(colours))
        points, kind = [tuple(corner) for corner in corners.tolist()], rng.integers(3)
        if kind == 0:
            canvas.line(points, colour, 1 + int(rng.integers(side // 8)), joint="curve")
        elif kind == 1:
            canvas.ellipse([*corners.min(0).tolist(), *corners.max(0).tolist()], colour)
        else:
            canvas.polygon(points, colour)
    return picture


def build(sections: dict[str, Any], seed: int, out: Path) -> PatchedObjective:
    """Build the objective from a recipe's table [patched]."""
    settings = section(sections, "patched", PatchedSettings)
    base = system.load(settings.base, device="cpu", dtype="float32", vae=settings.autoencoder or None, fast=False)
    own, rng = require_kl(base.autoencoder), np.random.default_rng(seed)
    torch.manual_seed(seed)
    if (params := base.spectrogram) is None:
        latents = draw_latents(base, concepts(settings.subset), settings.count + HELD_OUT, rng)
        shown = draw_sketches(settings.count, latents.shape[-1] * own.factor, rng)
    else:
        clips = ComposedMusic(seed, settings.count + HELD_OUT, params)
        shape = (base.unet.config.in_channels, params.mels // own.factor, params.columns // own.factor)
        latents = play_latents(base, [clips.caption(index, 0) for index in range(len(clips))], shape, rng)
        pictures = [torch.from_numpy(clips.picture(index)) for index in range(settings.count)]
        shown = torch.stack(pictures).permute(0, 3, 1, 2)
    return PatchedObjective(own, settings.patch_size, latents, shown, settings.batch, seed)
