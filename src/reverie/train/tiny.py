"""A tiny autoencoder (TAESD, madebyollin/taesd) for the latents of a model, distilled from its own.

Its decoder learns as `enlarge`'s does, from predicted latents and clean ones; its encoder learns the latents that the
model's own encoder gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie import system
from reverie.checkpoints.load import Components
from reverie.models.autoencoder import TinyAutoencoder, TinyBlock, TinyConfig
from reverie.runtime.blocks import draw_composed
from reverie.train.enlarge import PREDICTED, DecoderObjective, DecoderSettings, predictions
from reverie.train.inputs import SceneSettings
from reverie.train.latents import LATENTS, latent_pool
from reverie.train.recipe import section

HALVES = {"decoder": ("decoder.",), "encoder": ("encoder.",)}


class TinyObjective(DecoderObjective):
    """Train a tiny decoder to draw scenes, and a tiny encoder to give the latents that a larger one gives."""

    averaged: TinyAutoencoder

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Decode latents with the layers after the last block composed, in a fraction of the work."""
        return self.averaged.decode(z, draw_composed)

    def encoder_losses(
        self, images: Float[Tensor, "b 3 h w"], clean: Float[Tensor, "b c h2 w2"]
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield how far the latents of every other image are from the larger encoder's."""
        loss = (self.averaged.encode(images[::2]).mode() - clean[::2]).square().mean() / clean.var()
        yield "encoder", loss, {"latent_error": loss.item()}


@torch.no_grad()
def initialise_(tiny: TinyAutoencoder) -> None:
    """Start a tiny autoencoder so that it learns in few steps: variances are kept, blocks start as the identity.

    He et al. 2015; Goyal et al. 2017 for the last convolution of a residual block.
    """
    for module in tiny.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in tiny.modules():
        if isinstance(block, TinyBlock):
            for number in (0, 2):
                nn.init.kaiming_normal_(block.get_parameter(f"conv.{number}.weight"), nonlinearity="relu")
            nn.init.zeros_(block.get_parameter("conv.4.weight"))


def build(sections: dict[str, Any], seed: int, out: Path) -> TinyObjective:
    """Build the objective from a recipe's tables [tiny], [model] and [scenes]."""
    settings, scenes = section(sections, "tiny", DecoderSettings), section(sections, "scenes", SceneSettings)
    base = Components(**vars(system.load(settings.base, device="cpu", dtype="float32", fast=False)))
    own = base.autoencoder.requires_grad_(False)
    shown = scenes.open(scenes.seed or seed, base.unet.config.sample_size * own.factor)
    torch.manual_seed(seed)
    pairs = predictions(base, shown, latent_pool(own, shown, out / LATENTS), settings, seed, out / PREDICTED)
    config = section(sections, "model", TinyConfig)
    tiny = TinyAutoencoder(config)
    initialise_(tiny)
    return TinyObjective(tiny, HALVES, shown, pairs, settings, seed)
