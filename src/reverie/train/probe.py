"""Linear probe: a linear layer on ImageNet features names the things in a picture (Alain and Bengio 2016).

The judge of drawn pictures. Its eyes were trained on photographs, so it knows shapes and textures that no picture of
ours has taught it; only the layer learns, from scenes that were shrunk, blurred, noised and partly sent through an
autoencoder. The features of its pool are computed once and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reverie.checkpoints.load import load_autoencoder
from reverie.corpora.concepts import Concept, concepts
from reverie.corpora.scenes import render, scene_at
from reverie.data.loader import WHOLE, BatchPart
from reverie.errors import ReverieError
from reverie.models.autoencoder import ImageAutoencoder
from reverie.train.autoencoder import as_images
from reverie.train.classifier import ClassifierSettings, degrade, in_half, in_single
from reverie.train.imagenet import WIDTH, EfficientNetLite0
from reverie.train.kept import is_kept, keep, read_tensor
from reverie.train.loop import step_generator
from reverie.train.recipe import Share, section

FEATURES = "features.safetensors"  # in the folder of a run
AT_ONCE = 16


@dataclass(frozen=True)
class ProbeSettings:
    """Choose the scenes and what is done to them."""

    subset: str = "everyday"
    pool: PositiveInt = 12_000
    pair_share: Share = 0.4
    side: PositiveInt = 160  # pixels at which pictures are looked at; half of the time of 224
    autoencoder: str = ""  # folder of one that every second batch of scenes passes through
    coarsest: PositiveInt = 4
    noise: NonNegativeFloat = 0.1
    batch: PositiveInt = 256


class Probe(nn.Module):
    """Name things by a linear layer on standardised ImageNet features."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int, side: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, classes)
        self.side = side
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("std", torch.ones(WIDTH))
        self.eyes: list[EfficientNetLite0] = []  # in a list, so as not to be a part of the state; loaded when needed

    def forward(self, features: Float[Tensor, "b 1280"]) -> Float[Tensor, "b classes"]:
        """Return the logits of features."""
        return self.linear((features - self.mean) / self.std)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """Return the ImageNet features of images in [-1, 1]."""
        if not self.eyes:
            self.eyes.append(EfficientNetLite0().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        return self.eyes[0](images, self.side)


class ProbeObjective:
    """Train a probe on the kept features of a pool of scenes."""

    def __init__(self, probe: Probe, features: Tensor, targets: Tensor, settings: ProbeSettings, seed: int) -> None:
        self.averaged, self.settings, self.seed = probe, settings, seed
        self.networks = nn.ModuleDict({"probe": probe})
        self.features, self.targets = features, targets
        probe.mean.copy_(features.mean(0))
        probe.std.copy_(features.std(0) + 1e-3)

    def move(self, device: torch.device) -> None:
        """Put the network onto a device."""
        self.networks.to(device)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the one group."""
        return {"probe": list(self.averaged.parameters())}

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the cross-entropy with the things of each scene, which share its belief."""
        generator = step_generator(self.seed, step)
        rows = part.rows(torch.randint(len(self.features), (self.settings.batch,), generator=generator))
        device = self.averaged.linear.weight.device
        logits, target = self.averaged(self.features[rows].to(device)), self.targets[rows].to(device)
        loss = F.cross_entropy(logits, target)
        right = target.gather(1, logits.argmax(1, keepdim=True)).gt(0).float().mean()
        yield "probe", loss, {"loss": loss.item(), "right": right.item()}

    def after_step(self) -> None:
        """Leave the parameters as they are."""

    def samples(self) -> None:
        """A judge draws nothing."""

    def export(self, folder: Path) -> None:
        """Save the layer in half precision beside the names of its classes."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(in_half(self.averaged.cpu().state_dict()), folder / "model.safetensors")
        names = [thing.emoji for thing in concepts(self.settings.subset)]
        config = {"make": "probe", "side": self.settings.side, "names": names}
        (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))


def load_probe(folder: Path) -> tuple[Probe, list[str]]:
    """Load a trained probe and the emoji that its classes stand for. Raises ReverieError where there is none."""
    try:
        raw = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except OSError as error:
        raise ReverieError(f"no trained judge in {folder}: {error}; train one with its recipe") from error
    probe = Probe(len(raw["names"]), raw["side"])
    probe.load_state_dict(in_single(state))
    return probe.requires_grad_(False), raw["names"]


def targets(things: tuple[Concept, ...], settings: ProbeSettings, seed: int) -> Float[Tensor, "n classes"]:
    """Return what each scene of the pool holds, as shares of belief."""
    numbers = {thing.emoji: i for i, thing in enumerate(things)}
    found = torch.zeros(settings.pool, len(things))
    for index in range(settings.pool):
        objects = scene_at(things, seed, index, pair_share=settings.pair_share).objects
        for placed in objects:
            found[index, numbers[placed.concept.emoji]] = 1 / len(objects)
    return found


@torch.no_grad()
def pool_features(
    things: tuple[Concept, ...], settings: ProbeSettings, seed: int, path: Path
) -> Float[Tensor, "n 1280"]:
    """Return the ImageNet features of the degraded scenes of `things` in a pool; computed once, kept at `path`."""
    made_of = json.dumps([[thing.emoji for thing in things], asdict(settings) | {"batch": 0}, seed], ensure_ascii=False)
    if not is_kept(made_of, path):
        eyes = Probe(1, settings.side)
        autoencoder = load_autoencoder(Path(settings.autoencoder)).eval() if settings.autoencoder else None
        batches = range(0, settings.pool, AT_ONCE)
        rows = [eyes.features(_show(things, settings, seed, start, autoencoder)) for start in batches]
        keep(torch.cat(rows).half(), made_of, path)
    return read_tensor(path).float()


def _show(
    things: tuple[Concept, ...], settings: ProbeSettings, seed: int, start: int, autoencoder: ImageAutoencoder | None
) -> Float[Tensor, "b 3 h w"]:
    """Draw a batch of scenes as drawn pictures might look: sent through the autoencoder, blurred or noised."""
    indices = range(start, min(start + AT_ONCE, settings.pool))
    scenes = [scene_at(things, seed, index, pair_share=settings.pair_share) for index in indices]
    images = as_images(torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2))
    if autoencoder is not None and start // AT_ONCE % 2:
        images = autoencoder.decode(autoencoder.encode(images).mode()).clamp(-1, 1)
    harm = ClassifierSettings("", (), coarsest=settings.coarsest, noise=settings.noise)
    return degrade(images, harm, step_generator(seed, start)).clamp(-1, 1)


def build(sections: dict[str, Any], seed: int, out: Path) -> ProbeObjective:
    """Build the objective from a recipe's table [probe]."""
    settings = section(sections, "probe", ProbeSettings)
    things = concepts(settings.subset)
    features = pool_features(things, settings, seed, out / FEATURES)
    torch.manual_seed(seed)
    probe = Probe(len(things), settings.side)
    return ProbeObjective(probe, features, targets(things, settings, seed), settings, seed)
