"""How does CLIP learn? Symmetric cross-entropy between the pictures and the captions of a batch.

Source: Radford et al. 2021, figure 3 and section 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reverie.checkpoints.components import CLIPComponents
from reverie.checkpoints.save import save_clip
from reverie.data.captions import scene_caption
from reverie.data.concepts import Concept, concepts
from reverie.data.loader import Batches
from reverie.data.scenes import render, scene_at
from reverie.models.clip import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    contrastive_loss,
    normalise,
)
from reverie.tokenizer import Tokenizer
from reverie.train.loop import device_of
from reverie.train.recipe import section

ENGLISH_SHARE = 0.6  # of bare names; the others are Chinese


@dataclass(frozen=True)
class TextSettings:
    """Choose the tokenizer and the text tower."""

    vocabulary: int = 2048
    length: int = 24
    width: int = 192
    layers: int = 4
    heads: int = 4
    captions: int = 40_000  # from which the tokenizer is trained


@dataclass(frozen=True)
class VisionSettings:
    """Choose the vision tower."""

    width: int = 192
    layers: int = 4
    heads: int = 4
    patch: int = 16
    size: int = 128


@dataclass(frozen=True)
class ContrastSettings:
    """Choose the data and the common space."""

    subset: str = "common"
    batch: int = 64
    projection: int = 192
    naming: int = 2  # every so-many-th batch holds distinct things under their bare names; 0 is never
    workers: int = 0


def captioned_scene(things: tuple[Concept, ...], seed: int, index: int) -> tuple[np.ndarray, str]:
    """Draw scene `index` with one caption: uint8 (3, 128, 128) and a sentence in English or Chinese."""
    scene = scene_at(things, seed, index)
    return np.ascontiguousarray(render(scene).transpose(2, 0, 1)), scene_caption(things, seed, index)


def named_thing(things: tuple[Concept, ...], seed: int, index: int, batch: int) -> tuple[np.ndarray, str]:
    """Draw item `index` of a batch in which no thing comes twice, each alone, and told by its bare name.

    Colour, size and arrangement tell most scenes of a batch apart, and a CLIP that sees no other batches learns little
    of the things themselves (measured: docs/bundled-model.md).
    """
    step, place = divmod(index, batch)
    order = np.random.default_rng((seed, step, 5)).permutation(len(things))
    thing = things[order[place % len(things)]]
    rng = np.random.default_rng((seed, index, 6))
    names = thing.en if rng.random() < ENGLISH_SHARE else thing.zh
    picture = render(scene_at((thing,), seed, index, pair_share=0))
    return np.ascontiguousarray(picture.transpose(2, 0, 1)), names[rng.integers(len(names))]


def train_tokenizer(things: tuple[Concept, ...], settings: TextSettings, seed: int) -> Tokenizer:
    """Learn a byte-pair vocabulary from captions of the corpus."""
    captions = (scene_caption(things, seed, index) for index in range(settings.captions))
    return Tokenizer.train(captions, settings.vocabulary, settings.length)


class ClipObjective:
    """Train both towers, the projections and the temperature."""

    def __init__(self, clip: CLIP, tokenizer: Tokenizer, settings: ContrastSettings, seed: int) -> None:
        self.averaged, self.tokenizer = clip, tokenizer
        self.networks = nn.ModuleDict({"clip": clip})
        self.things, self.settings, self.seed = concepts(settings.subset), settings, seed
        self.batches = Batches(self._item, settings.batch, settings.workers)

    def _item(self, index: int) -> tuple[np.ndarray, str]:
        naming, batch = self.settings.naming, self.settings.batch
        if naming and index // batch % naming == naming - 1:
            return named_thing(self.things, self.seed, index, batch)
        return captioned_scene(self.things, self.seed, index)

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group."""
        return {"clip": list(self.averaged.parameters())}

    def losses(self, step: int) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the contrastive loss."""
        pixels, captions = self.batches(step)
        device = device_of(self.averaged)
        images, texts = self.averaged(normalise(pixels.to(device)), self.tokenizer(captions).to(device))
        loss = contrastive_loss(images, texts, self.averaged.logit_scale)
        yield "clip", loss, {"loss": loss.item(), "scale": self.averaged.logit_scale.exp().item()}

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        self.averaged.clamp_logit_scale_()

    def samples(self) -> None:
        """CLIP draws nothing."""

    def export(self, folder: Path) -> None:
        """Save the CLIP with its tokenizer."""
        save_clip(CLIPComponents(self.averaged, self.tokenizer), folder)


def build(sections: dict[str, Any], seed: int, out: Path) -> ClipObjective:
    """Build the objective from a recipe's tables [text], [vision] and [contrast]."""
    text, vision = section(sections, "text", TextSettings), section(sections, "vision", VisionSettings)
    contrast = section(sections, "contrast", ContrastSettings)
    tokenizer = train_tokenizer(concepts(contrast.subset), text, seed)
    torch.manual_seed(seed)
    config = CLIPConfig(
        text=CLIPTextConfig(
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            hidden_act="gelu",
            vocab_size=len(tokenizer),
            max_position_embeddings=text.length,
            eos_token_id=tokenizer.eos_id,
            projection_dim=contrast.projection,
        ),
        vision=CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=4 * vision.width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            hidden_act="gelu",
            image_size=vision.size,
            patch_size=vision.patch,
        ),
        projection_dim=contrast.projection,
    )
    return ClipObjective(CLIP(config), tokenizer, contrast, seed)
