"""Training of the classifiers (perceptual features, judge): cross-entropy over the objects of a scene."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from reverie.checkpoints.save import write_tensors
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import CANVAS, PAIR_SHARE, crop_at, scene_at
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.errors import ReverieError, choose
from reverie.models.classifier import CLASSIFIERS, ClassifierConfig, PlainNet, ResidualNet
from reverie.train.loop import device_of, step_generator
from reverie.train.recipe import section


@dataclass(frozen=True)
class ClassifierSettings:
    """Choose the scenes and the network."""

    make: str
    widths: tuple[int, ...]
    subset: str = "common"
    crop: int = CANVAS  # below the canvas' size: squares that hold a part of the first object
    batch: int = 32
    pair_share: float = PAIR_SHARE  # of the scenes hold two objects
    coarsest: int = 1  # largest factor by which a picture is shrunk and enlarged again, as a blurred drawing would be
    noise: float = 0.0  # largest standard deviation of the noise laid over a picture
    workers: int = 0


class ClassifierObjective:
    """Train a classifier to name the object, or share its belief between the two, of a scene."""

    def __init__(self, settings: ClassifierSettings, seed: int) -> None:
        self.things = concepts(settings.subset)
        self.config = ClassifierConfig(settings.make, len(self.things), settings.widths)
        self.averaged = choose("classifier", settings.make, CLASSIFIERS)(self.config)
        self.networks = nn.ModuleDict({"classifier": self.averaged})
        self.numbers = {thing.emoji: i for i, thing in enumerate(self.things)}
        self.settings, self.seed = settings, seed
        self.batches = Batches(self._item, settings.batch, settings.workers)

    def _item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        share = self.settings.pair_share
        scene = scene_at(self.things, self.seed, index, pair_share=share)
        whole = self.settings.crop == CANVAS
        target = np.zeros(len(self.things), np.float32)
        for placed in scene.objects if whole else scene.objects[:1]:
            target[self.numbers[placed.concept.emoji]] = 1
        return crop_at(self.things, self.seed, index, self.settings.crop, share), target / target.sum()

    def move(self, device: torch.device) -> None:
        """Put the networks onto a device."""
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group."""
        return {"classifier": list(self.averaged.parameters())}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the cross-entropy."""
        pixels, target = self.batches(step, part)
        images = pixels.float() / 127.5 - 1
        images = degrade(images, self.settings, step_generator(self.seed, step), part)
        images, target = images.to(device_of(self.averaged)), target.to(device_of(self.averaged))
        logits = self.averaged(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, target)
        right = target.gather(1, logits.argmax(1, keepdim=True)).gt(0).float().mean()
        yield "classifier", loss, {"loss": loss.item(), "right": right.item()}

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    def samples(self) -> None:
        """A classifier draws nothing."""

    def export(self, folder: Path) -> None:
        """Save the weights in half precision beside the config and the class names."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(in_half(self.averaged.cpu().state_dict()), folder / "model.safetensors")
        config = asdict(self.config) | {"names": [thing.emoji for thing in self.things]}
        (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))


def degrade(
    images: Float[Tensor, "b 3 h w"], settings: ClassifierSettings, generator: torch.Generator, part: BatchPart = WHOLE
) -> Float[Tensor, "b 3 h w"]:
    """Take sharpness from each image by a factor of its own and lay noise of an amount of its own over it."""
    count = part.count * len(images)
    if settings.coarsest > 1:
        factors = part.rows(torch.randint(1, settings.coarsest + 1, (count,), generator=generator))
        rows = zip(images.split(1), factors.tolist(), strict=True)
        images = torch.cat([coarsen(row, factor) for row, factor in rows])
    if settings.noise:
        amount = settings.noise * part.rows(torch.rand(count, 1, 1, 1, generator=generator))
        images = images + amount * part.randn_like(images, generator)
    return images


def coarsen(images: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c h w"]:
    """Shrink images by averaging and enlarge them again, so that nothing finer than `factor` pixels is left."""
    if factor == 1:
        return images
    height, width = images.shape[2:]
    small = F.interpolate(images, (height // factor, width // factor), mode="area")
    return F.interpolate(small, (height, width), mode="bilinear")


def load_classifier(folder: Path) -> tuple[PlainNet | ResidualNet, list[str]]:
    """Load a trained classifier in evaluation mode, and the emoji that its classes stand for."""
    try:
        raw = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except OSError as error:
        raise ReverieError(f"no trained classifier in {folder}: {error}; train one with its recipe") from error
    names = raw.pop("names")
    config = ClassifierConfig(raw["make"], raw["classes"], tuple(raw["widths"]))
    network = CLASSIFIERS[config.make](config)
    network.load_state_dict(in_single(state))
    return network.eval().requires_grad_(False), names


def in_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast the floating-point tensors of a state to float16, as they are kept."""
    return _as(torch.float16, state)


def in_single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast the floating-point tensors of a state to float32, as they compute."""
    return _as(torch.float32, state)


def _as(dtype: torch.dtype, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast the floating-point tensors of a state."""
    return {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous() for name, value in state.items()
    }


def load_features(folder: Path) -> PlainNet:
    """Load a trained plain classifier, whose feature maps give a perceptual distance."""
    network, _ = load_classifier(folder)
    if not isinstance(network, PlainNet):
        raise ReverieError(f"the classifier in {folder} has no feature maps; train one with make = 'plain'")
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build(sections: dict[str, Any], seed: int, out: Path) -> ClassifierObjective:
    """Build the objective from a recipe's table [classifier]."""
    torch.manual_seed(seed)
    return ClassifierObjective(section(sections, "classifier", ClassifierSettings), seed)
