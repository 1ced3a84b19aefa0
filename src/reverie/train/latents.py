"""Latents of numbered examples, encoded once into a file that knows of what.

A file is valid for one encoder, by its weights, and one row of examples, by their identity: whatever else changes in a
recipe, it need not be made again. A job that was stopped goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reverie.codecs.image import scale_latents
from reverie.data.loader import Batches, shuffled_index
from reverie.files import PART, lock, unwritable
from reverie.models.autoencoder import ImageAutoencoder
from reverie.progress import Progress
from reverie.train.autoencoder import as_images
from reverie.train.examples import Examples
from reverie.train.kept import is_kept, keep, read_tensor

ENCODE_BATCH = 16
ENCODER = ("encoder.", "quant_conv.")
LATENTS = "latents.safetensors"  # in the folder of a run


def fill(autoencoder: ImageAutoencoder, examples: Examples, path: Path, workers: int = 0) -> Iterator[Progress]:
    """Write the scaled latents of all examples, as the autoencoder encodes them, to `path`, in half precision.

    It yields how far it is; `workers` processes prepare the examples, 0 is this one.

    Nothing is done where the file is there already, for this encoder and these examples.
    """
    identity = _identity(autoencoder, examples)
    if is_kept(identity, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{hashlib.sha256(identity.encode()).hexdigest()[:12]}{PART}")
    shape = _encode(autoencoder, [examples.picture(0)]).shape[1:]
    with unwritable(path), part.open("ab") as file:
        lock(file, f"making '{path}'")
        batch_bytes = ENCODE_BATCH * shape.numel() * torch.float16.itemsize
        start = file.tell() // batch_bytes  # a batch that was cut off is made again, whole
        file.truncate(start * batch_bytes)
        batches = Batches(lambda index: examples.picture(min(index, len(examples) - 1)), ENCODE_BATCH, workers)
        for step in range(start, -(-len(examples) // ENCODE_BATCH)):
            latents = _encode(autoencoder, batches(step))[: len(examples) - step * ENCODE_BATCH]
            file.write(latents.numpy().tobytes())
            file.flush()
            yield Progress(step * ENCODE_BATCH + len(latents), len(examples), "latents")
    latents = torch.from_numpy(np.fromfile(part, np.float16)).view(-1, *shape)
    keep(latents, identity, path)
    part.unlink()


def latent_pool(
    autoencoder: ImageAutoencoder, examples: Examples, path: Path, workers: int = 0
) -> Float[Tensor, "n c h w"]:
    """Return the scaled latents of all examples, in half precision, from the file at `path`; see `fill`."""
    for _ in fill(autoencoder, examples, path, workers):
        pass
    return read_tensor(path)


Item = tuple[Tensor, str, float]
"""Latents (c, h, w), their caption, and their weight in the loss."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Serve latents and captions without end: every pass over the examples is shuffled and told anew.

    The share `dropout` of the captions is left empty, for classifier-free guidance; an item counts `weight`.
    """

    examples: Examples
    latents: Float[Tensor, "n c h w"]
    seed: int
    dropout: float
    weight: float = 1.0

    def __call__(self, index: int) -> Item:
        """Return item `index`."""
        turn, place = divmod(index, len(self.latents))
        number = shuffled_index(self.seed, turn, len(self.latents), place)
        empty = np.random.default_rng((self.seed, index, 3)).random() < self.dropout
        return self.latents[number].float(), "" if empty else self.examples.caption(number, turn), self.weight


@torch.no_grad()
def _encode(autoencoder: ImageAutoencoder, pixels: Tensor | list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(pixels)) if isinstance(pixels, list) else pixels
    images = as_images(stacked.permute(0, 3, 1, 2).to(autoencoder.device))
    return scale_latents(autoencoder.encode(images).mode(), autoencoder.config).half().cpu()


def _identity(autoencoder: ImageAutoencoder, examples: Examples) -> str:
    digest = hashlib.sha256(json.dumps(asdict(autoencoder.config)).encode())
    for name, value in sorted(autoencoder.state_dict().items()):
        if name.startswith(ENCODER):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return json.dumps([digest.hexdigest(), examples.identity])
