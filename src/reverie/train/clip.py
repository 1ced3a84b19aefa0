"""Contrastive training of CLIP, in a batch as large as wanted, and its zero-shot accuracy while it learns.

Source: Radford et al. 2021, figure 3 and section 2.4. `contrast.py` holds the losses and what saves memory,
`parallel.py` what shares the batch among processes, `pairs.py` where pictures and captions come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from reverie.checkpoints.load import CLIPComponents
from reverie.checkpoints.save import save_clip
from reverie.codecs.clip_images import Preprocessing
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.errors import ReverieError, choose
from reverie.models.clip import (
    CLIP,
    IMAGE_MEAN,
    IMAGE_STD,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    normalise,
)
from reverie.similarity.classify import PHOTO, PLAIN, Classifier
from reverie.similarity.embed import Clip, load_clip
from reverie.similarity.evaluate import LabelledPicture, Report, evaluate, find_classes
from reverie.tokenizer import Tokenizer
from reverie.train.contrast import CONTRASTS, Sigmoid, Softmax, in_chunks
from reverie.train.loop import device_of
from reverie.train.pairs import Pairs, open_pairs
from reverie.train.recipe import section

Examination = Callable[[CLIP, Tokenizer], dict[str, float]]
HELD_OUT_SEED = 20_000  # benchmarks/quality.py draws from there on; no training does


@dataclass(frozen=True)
class EvaluationSettings:
    """Choose what is named every `sample_every` steps; nothing is, where neither is given."""

    folder: str = ""  # with one folder of pictures a class, called as the class
    templates: tuple[str, ...] = PHOTO  # the sentences that its classes are named in, each with a {}
    scenes: int = 0  # emoji scenes of one thing each, named among all English names of the subset
    batch: int = 64

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no run can use."""
        if self.scenes < 0 or self.batch < 1:
            raise ReverieError(f"scenes = {self.scenes}, batch = {self.batch} in [evaluation]; give 0 and 1, or more")


def examination(settings: EvaluationSettings, subset: str, size: int) -> Examination | None:
    """Prepare what the settings ask for. Raises ReverieError where the folder is none of classes."""
    exams: list[Examination] = []
    if settings.folder:
        labels, samples = find_classes(Path(settings.folder))
        exams.append(lambda clip, tokenizer: _folder(_ready(clip, tokenizer, size), labels, samples, settings))
    if settings.scenes:
        exams.append(lambda clip, tokenizer: _scenes(_ready(clip, tokenizer, size), subset, settings))
    if not exams:
        return None
    return lambda clip, tokenizer: {name: value for exam in exams for name, value in exam(clip, tokenizer).items()}


def _ready(clip: CLIP, tokenizer: Tokenizer, size: int) -> Clip:
    return Clip(model=clip, tokenizer=tokenizer, preprocessing=Preprocessing(size=size, edge=size))


def _folder(
    clip: Clip, labels: Sequence[str], samples: Sequence[LabelledPicture], settings: EvaluationSettings
) -> dict[str, float]:
    report = Report(tuple(labels))
    for event in evaluate(clip.classifier(labels, settings.templates), samples, settings.batch):
        report = event.report
    return {"top1": report.top1, "top5": report.top5}


def _scenes(clip: Clip, subset: str, settings: EvaluationSettings) -> dict[str, float]:
    """Return the share of lone things, in scenes that no training draws, whose English name is found among all."""
    things = concepts(subset)
    names = [(name, thing.emoji) for thing in things for name in thing.en]
    classifier = Classifier.of(clip, [name for name, _ in names], PLAIN)
    hits = 0
    for start in range(0, settings.scenes, settings.batch):
        shown = [
            scene_at(things, HELD_OUT_SEED, index, pair_share=0)
            for index in range(start, min(start + settings.batch, settings.scenes))
        ]
        rows = clip.embed_levels(clip.levels([Image.fromarray(render(scene)) for scene in shown]))
        guesses = classifier.cosines(rows).argmax(1).tolist()
        hits += sum(
            names[guess][1] == scene.objects[0].concept.emoji for guess, scene in zip(guesses, shown, strict=True)
        )
    return {"scenes_top1": hits / settings.scenes}


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


LOCKED: dict[str, tuple[str, ...]] = {
    "": (),
    "vision": ("vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
}
"""How the names of what does not learn begin: a locked image tower is LiT's (Zhai et al. 2111.07991, section 3)."""


@dataclass(frozen=True)
class ContrastSettings:
    """Choose the data, the common space and the loss."""

    subset: str = "common"
    batch: int = 64  # of all processes together: what each picture is contrasted with
    projection: int = 192
    naming: int = 2  # every so-many-th batch holds distinct things under their bare names; 0 is never
    workers: int = 0
    loss: str = "softmax"  # a key of CONTRASTS
    initial: str = ""  # CLIP to go on from: a folder, a file or a name on the hub, with its words and its shape
    locked: str = ""  # what of it does not learn, a key of LOCKED
    activation: str = "gelu"
    chunk: int = 0  # pairs that pass the towers at once, by gradient caching; 0 is a process's whole share

    def __post_init__(self) -> None:
        """Raise ReverieError for numbers that no run can use."""
        if self.batch < 1 or self.chunk < 0:
            raise ReverieError(f"batch = {self.batch}, chunk = {self.chunk} in [contrast]; give 1 or more, 0 or more")
        choose("locked in [contrast]", self.locked, LOCKED)
        if self.locked and not self.initial:
            raise ReverieError(f"locked = {self.locked!r} in [contrast] keeps what is there; give initial too")
        if self.initial and self.loss != "softmax":
            raise ReverieError("a CLIP that exists learns on by loss = 'softmax': no file of one has a sigmoid's bias")


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
    ) -> None:
        self.averaged, self.tokenizer, self.contrast = clip, tokenizer, contrast
        self.networks = nn.ModuleDict({"clip": clip, "contrast": contrast})
        self.chunk, self.exam = settings.chunk, exam
        self.batches = Batches(pairs, settings.batch, settings.workers)

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        self.networks.to(device)

    def all_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the networks."""
        yield from self.networks.items()

    def backbones(self) -> Iterator[nn.Module]:
        """Return both towers."""
        yield self.averaged

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group, of all that is not locked."""
        return {"clip": [parameter for parameter in self.networks.parameters() if parameter.requires_grad]}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the contrastive loss of this process's pairs among all."""
        levels, captions = self.batches(step, part)
        device, chunk = device_of(self.averaged), self.chunk
        images = in_chunks(self._embed_levels, levels.to(device), chunk)
        texts = in_chunks(self.averaged.encode_text, self.tokenizer(captions).to(device), chunk)
        known = torch.amp.is_autocast_available(device.type)  # by the meta device not
        with torch.autocast(device.type, enabled=False) if known else nullcontext():  # cosines need all their digits
            loss = self.contrast(images.float(), texts.float(), self.averaged.logit_scale)
        yield "clip", loss, {"loss": loss.item(), "scale": self.averaged.logit_scale.exp().item()}

    def _embed_levels(self, levels: Tensor) -> Float[Tensor, "b d"]:
        return self.averaged.encode_image(normalise(levels))

    def keys(self, step: int, part: BatchPart) -> list[str]:
        """Name what a part of a step is learned from."""
        return self.batches.keys(step, part)

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
    """Describe a recipe's network, for a tokenizer of `vocabulary` tokens, `length` a text, which `eos` ends."""
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


def begin(settings: ContrastSettings, sections: dict[str, Any]) -> Clip:
    """Load the CLIP that a recipe goes on from, what is `locked` of it frozen.

    Raises ReverieError where it sees pictures otherwise than what is exported would say, or its shape is given too.
    """
    if given := {"text", "vision"} & sections.keys():
        raise ReverieError(f"initial in [contrast] has words and a shape of its own; leave out [{min(given)}]")
    begun = load_clip(settings.initial, device="cpu", dtype="float32")
    seen = begun.preprocessing
    if (seen.mean, seen.std) != (IMAGE_MEAN, IMAGE_STD):
        raise ReverieError(f"'{settings.initial}' has a mean and deviation of its own; give a CLIP that has OpenAI's")
    for name, parameter in begun.model.named_parameters():
        parameter.requires_grad_(not name.startswith(LOCKED[settings.locked]))
    begun.model.train()
    return begun


def build(sections: dict[str, Any], seed: int, out: Path) -> ClipObjective:
    """Build the objective from a recipe's tables [text], [vision], [data], [contrast] and [evaluation]."""
    text, vision = section(sections, "text", TextSettings), section(sections, "vision", VisionSettings)
    data, settings = section(sections, "data", PairSettings), section(sections, "contrast", ContrastSettings)
    kind = choose("loss", settings.loss, CONTRASTS)
    begun = begin(settings, sections) if settings.initial else None
    size = begun.preprocessing.size if begun else vision.size
    exam = examination(section(sections, "evaluation", EvaluationSettings), settings.subset, size)
    pairs = open_pairs(
        data.path,
        subset=settings.subset,
        seed=seed,
        batch=settings.batch,
        naming=settings.naming,
        size=size,
        smallest=data.smallest,
    )
    if begun:
        return ClipObjective(begun.model, begun.tokenizer, kind(), pairs, settings, exam)
    tokenizer = learn_words(pairs, text)
    torch.manual_seed(seed)
    shape = {"vocabulary": len(tokenizer), "length": tokenizer.length, "eos": tokenizer.eos_id}
    clip = CLIP(clip_config(text, vision, settings, **shape))
    contrast = kind()
    with torch.no_grad():
        clip.logit_scale.fill_(contrast.start)
    return ClipObjective(clip, tokenizer, contrast, pairs, settings, exam)
