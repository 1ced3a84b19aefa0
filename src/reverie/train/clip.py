"""Contrastive training of CLIP, in a batch as large as wanted.

Source: Radford et al. 2021, figure 3 and section 2.4. `contrast.py` holds the losses and what saves memory,
`parallel.py` what shares the batch among processes, `pairs.py` where pictures and captions come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.checkpoints.load import CLIPComponents
from reverie.checkpoints.save import save_clip
from reverie.data.loader import Batches
from reverie.diffusion.names import choose
from reverie.errors import ReverieError
from reverie.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, normalise
from reverie.tokenizer import Tokenizer
from reverie.train.contrast import CONTRASTS, Sigmoid, Softmax, in_chunks, recompute_layers_
from reverie.train.loop import device_of
from reverie.train.pairs import Pair, Pairs, open_pairs
from reverie.train.parallel import Ranks, ranks, total
from reverie.train.recipe import section
from reverie.train.zero_shot import EvaluationSettings, Examination, examination


@dataclass(frozen=True)
class TextSettings:
    """Choose the tokenizer and the text tower."""

    vocabulary: int = 2048
    length: int = 24
    width: int = 192
    layers: int = 4
    heads: int = 4
    captions: int = 40_000  # from which the tokenizer is trained
    tokenizer: str = ""  # folder of one to take instead, with its vocabulary and length


@dataclass(frozen=True)
class VisionSettings:
    """Choose the vision tower."""

    width: int = 192
    layers: int = 4
    heads: int = 4
    patch: int = 16
    size: int = 128


@dataclass(frozen=True)
class PairSettings:
    """Choose a collection of the user's own; without a path, the emoji scenes of [contrast] are learned."""

    path: str = ""  # folder of webdataset shards, or of pictures with captions
    smallest: float = 0.9  # least share of a picture that a crop keeps; 1 crops the largest square in the middle


@dataclass(frozen=True)
class ContrastSettings:
    """Choose the data, the common space and the loss."""

    subset: str = "common"
    batch: int = 64  # of all processes together: what each picture is contrasted with
    projection: int = 192
    naming: int = 2  # every so-many-th batch holds distinct things under their bare names; 0 is never
    workers: int = 0
    loss: str = "softmax"  # a key of CONTRASTS
    activation: str = "gelu"
    chunk: int = 0  # pairs that pass the towers at once, by gradient caching; 0 is a process's whole share
    recompute_layers: bool = False  # half the layers' memory or less, for a third more time

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no run can use."""
        if self.batch < 1 or self.chunk < 0:
            raise ReverieError(f"batch = {self.batch}, chunk = {self.chunk} in [contrast]; give 1 or more, 0 or more")


class ClipObjective:
    """Train both towers, the projections and the temperature."""

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        contrast: Softmax | Sigmoid,
        pairs: Pairs,
        settings: ContrastSettings,
        exam: Examination | None = None,
        here: Ranks = Ranks(),
    ) -> None:
        self.averaged, self.tokenizer, self.contrast = clip, tokenizer, contrast
        self.networks = nn.ModuleDict({"clip": clip, "contrast": contrast})
        self.pairs, self.settings, self.exam, self.here = pairs, settings, exam, here
        self.batches = Batches(self._item, here.share(settings.batch), settings.workers)

    def _item(self, index: int) -> Pair:
        return self.pairs(self.here.position(index, self.settings.batch))

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group."""
        return {"clip": list(self.networks.parameters())}

    def losses(self, step: int) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the contrastive loss: this process's share of it."""
        levels, captions = self.batches(step)
        device, chunk = device_of(self.averaged), self.settings.chunk
        images = in_chunks(self._embed_levels, levels.to(device), chunk)
        texts = in_chunks(self.averaged.encode_text, self.tokenizer(captions).to(device), chunk)
        with torch.autocast(device.type, enabled=False):  # cosines near one another need all the digits
            loss = self.contrast(images.float(), texts.float(), self.averaged.logit_scale)
        yield "clip", loss, {"loss": total(loss), "scale": self.averaged.logit_scale.exp().item()}

    def _embed_levels(self, levels: Tensor) -> Float[Tensor, "b d"]:
        return self.averaged.encode_image(normalise(levels))

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        self.contrast.settle(self.averaged)

    def measures(self) -> dict[str, float]:
        """Name pictures, where the recipe has an [evaluation]."""
        return self.exam(self.averaged, self.tokenizer) if self.exam else {}

    def samples(self) -> None:
        """CLIP draws nothing."""

    def export(self, folder: Path) -> None:
        """Save the CLIP with its tokenizer."""
        save_clip(CLIPComponents(self.averaged, self.tokenizer), folder)


def clip_config(
    text: TextSettings, vision: VisionSettings, contrast: ContrastSettings, *, vocabulary: int, length: int, eos: int
) -> CLIPConfig:
    """Describe the network of a recipe, for a tokenizer of so many tokens, whose texts are so long and end in `eos`."""
    return CLIPConfig(
        text=CLIPTextConfig(
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            hidden_act=contrast.activation,
            vocab_size=vocabulary,
            max_position_embeddings=length,
            eos_token_id=eos,
            projection_dim=contrast.projection,
        ),
        vision=CLIPVisionConfig(
            hidden_size=vision.width,
            intermediate_size=4 * vision.width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            hidden_act=contrast.activation,
            image_size=vision.size,
            patch_size=vision.patch,
        ),
        projection_dim=contrast.projection,
    )


def learn_words(pairs: Pairs, settings: TextSettings) -> Tokenizer:
    """Return the tokenizer that the settings name, or learn a byte-pair vocabulary from captions."""
    if settings.tokenizer:
        return Tokenizer.load(settings.tokenizer)
    return Tokenizer.train(pairs.captions(settings.captions), settings.vocabulary, settings.length)


def build(sections: dict[str, Any], seed: int, out: Path) -> ClipObjective:
    """Build the objective from a recipe's tables [text], [vision], [data], [contrast] and [evaluation]."""
    text, vision = section(sections, "text", TextSettings), section(sections, "vision", VisionSettings)
    data, settings = section(sections, "data", PairSettings), section(sections, "contrast", ContrastSettings)
    kind = choose("loss", settings.loss, CONTRASTS)
    here = ranks()
    here.share(settings.batch)
    exam = examination(section(sections, "evaluation", EvaluationSettings), settings.subset, vision.size)
    pairs = open_pairs(
        data.path,
        subset=settings.subset,
        seed=seed,
        batch=settings.batch,
        naming=settings.naming,
        size=vision.size,
        smallest=data.smallest,
    )
    tokenizer = learn_words(pairs, text)
    torch.manual_seed(seed)
    shape = {"vocabulary": len(tokenizer), "length": tokenizer.length, "eos": tokenizer.eos_id}
    clip = CLIP(clip_config(text, vision, settings, **shape))
    contrast = kind()
    with torch.no_grad():
        clip.logit_scale.fill_(contrast.start)
    if settings.recompute_layers:
        recompute_layers_(clip)
    return ClipObjective(clip, tokenizer, contrast, pairs, settings, exam, here)
