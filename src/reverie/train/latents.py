"""Latents of numbered examples, encoded once into a file that knows of what.

A file is valid for one encoder, by its weights, and one row of examples, by their identity: whatever else changes in a
recipe, it need not be made again. A job that was stopped goes on where it stood.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from reverie.codecs.image import scale_latents
from reverie.data.loader import Batches, shuffled_index
from reverie.data.remote import Unreachable
from reverie.errors import RequestWarning, ReverieError, warn
from reverie.files import PART, lock, unwritable
from reverie.models.autoencoder import ImageAutoencoder
from reverie.progress import Progress
from reverie.train.autoencoder import as_images
from reverie.train.encoded import Description, Encoded, ShardedRows
from reverie.train.examples import Examples, Pictures
from reverie.train.kept import digest_of, is_kept, keep, read_tensor

ENCODE_BATCH = 16
ENCODER = ("encoder.", "quant_conv.")
NAMED = 3  # damaged pictures that a note names
LATENTS = "latents.safetensors"  # in the folder of a run


class NothingLeft(ReverieError):
    """None of some pictures can be read or encoded."""


def fill(autoencoder: ImageAutoencoder, examples: Examples, path: Path, workers: int = 0) -> Iterator[Progress]:
    """Write the scaled latents of all examples, as the autoencoder encodes them, to `path`, in half precision.

    It yields how far it is; `workers` processes prepare the examples, 0 is this one.

    Nothing is done where the file is there already, for this encoder and these examples.
    """
    show = partial(_show, examples)
    batches = Batches(lambda index: show(min(index, len(examples) - 1)), ENCODE_BATCH, workers)

    def encode(start: int, end: int) -> Tensor:
        pixels, is_read = batches(start // ENCODE_BATCH)
        return _encode(autoencoder, pixels).masked_fill_(~is_read.view(-1, 1, 1, 1), torch.nan)[: end - start]

    def shape() -> torch.Size:
        return _encode(autoencoder, [show(0)[0]]).shape[1:]

    yield from fill_rows(_identity(autoencoder, examples), path, len(examples), shape, encode, "latents")


def fill_rows(
    identity: str,
    path: Path,
    count: int,
    measure: Callable[[], torch.Size],
    encode: Callable[[int, int], Float[Tensor, "b ..."]],
    what: str,
) -> Iterator[Progress]:
    """Write `count` rows of half precision to `path`: `encode(start, end)` gives some, `measure` the shape of one.

    Nothing is done where the file is there already and was made of what `identity` says.
    """
    if is_kept(identity, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{hashlib.sha256(identity.encode()).hexdigest()[:12]}{PART}")
    shape = measure()
    with unwritable(path), part.open("ab") as file:
        lock(file, f"making '{path}'")
        batch_bytes = ENCODE_BATCH * shape.numel() * torch.float16.itemsize
        start = file.tell() // batch_bytes * ENCODE_BATCH  # a batch that was cut off is made again, whole
        file.truncate(start * shape.numel() * torch.float16.itemsize)
        for first in range(start, count, ENCODE_BATCH):
            end = min(first + ENCODE_BATCH, count)
            file.write(encode(first, end).numpy().tobytes())
            file.flush()
            yield Progress(end, count, what)
    rows = torch.from_numpy(np.fromfile(part, np.float16)).view(-1, *shape)
    keep(rows, identity, path)
    part.unlink()


def latent_pool(
    autoencoder: ImageAutoencoder, examples: Examples, path: Path, workers: int = 0
) -> Float[Tensor, "n c h w"]:
    """Return the scaled latents of all examples, in half precision, from the file at `path`; see `fill`."""
    for _ in fill(autoencoder, examples, path, workers):
        pass
    return read_tensor(path)


def _show(examples: Examples, index: int) -> tuple[UInt8[np.ndarray, "h w c"], bool]:
    """Return a picture and True, or a black one and False where one of a collection cannot be read."""
    try:
        return examples.picture(index), True
    except Unreachable:
        raise
    except ReverieError:
        if not isinstance(examples, Pictures):
            raise
        return examples.blank, False


def open_pool(
    autoencoder: ImageAutoencoder, examples: Examples, path: Path, workers: int = 0
) -> tuple[Examples, Float[Tensor, "n c h w"]]:
    """Return examples and their latents as `latent_pool`, but for pictures that could not be read, or not encoded.

    A warning counts and names these. Raises ReverieError where none are left.
    """
    latents = latent_pool(autoencoder, examples, path, workers)
    whole = latents.flatten(1).isfinite().all(1)
    if not isinstance(examples, Pictures) or whole.all():
        return examples, latents
    variants = examples.augmentation.variants
    whole = whole.view(-1, variants).all(1)
    bad = [variants * number for number in (~whole).nonzero()[:, 0].tolist()]
    named = ", ".join(examples.place(index) for index in bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
    said = f"{len(bad)} of {len(whole)} pictures cannot be read or encoded, and are left out: {named}"
    if not whole.any():
        raise NothingLeft(f"{said}; nothing is left to learn from: repair them")
    warn(said, RequestWarning, stacklevel=2)
    members = [number for number, kept in zip(examples.members, whole.tolist(), strict=True) if kept]
    return replace(examples, members=members), latents[whole.repeat_interleave(variants)]


Pool = Callable[..., tuple[Examples, Tensor]]
"""(autoencoder, examples, path, workers) -> examples and their latents, as `open_pool`."""

Beside = Callable[[int, np.random.Generator], Description]
"""(number of an example, random numbers of an item) -> what is told beside the caption."""

Item = tuple[Tensor, Any, float | Tensor]
"""Latents (c, h, w), what is told of them, and their weight in the loss, one or (1, h, w)."""


def tell_caption(number: int, caption: str) -> str:
    """Tell of an example its caption alone."""
    return caption


@dataclass(frozen=True, eq=False)
class Stream:
    """Serve latents and captions without end: every pass over the examples is shuffled and told anew.

    The share `dropout` of the captions is left empty, for classifier-free guidance; an item counts `weight`; `tell`
    makes of an example's number and caption what is told of it, and `beside` adds to it. Of `masked` latents the last
    channel is a mask.
    """

    examples: Examples
    latents: Float[Tensor, "n c h w"] | ShardedRows
    seed: int
    dropout: float
    weight: float = 1.0
    tell: Callable[[int, str], Any] = tell_caption
    beside: Beside | None = None
    masked: bool = False

    def key(self, index: int) -> str:
        """Name the example of item `index`."""
        number, _ = self._draw(index)
        return self.examples.place(number) if isinstance(self.examples, Pictures | Encoded) else f"example {number}"

    def _draw(self, index: int) -> tuple[int, int]:
        """Return the number of an item's example, and the pass."""
        turn, place = divmod(index, len(self.latents))
        return shuffled_index(self.seed, turn, len(self.latents), place), turn

    def __call__(self, index: int) -> Item:
        """Return item `index`."""
        number, turn = self._draw(index)
        rng = np.random.default_rng((self.seed, index, 3))
        caption = "" if rng.random() < self.dropout else self.examples.caption(number, turn)
        latents, described = self.latents[number].float(), self.tell(number, caption)
        if self.beside is not None:
            described = described | self.beside(number, rng)
        if self.masked:
            return latents[:-1], described, self.weight * latents[-1:]
        return latents, described, self.weight


@dataclass(frozen=True, eq=False)
class Mixed:
    """Serve streams batch by batch: of each as many in a pass as `counts` say, in an order that every pass draws."""

    streams: Sequence[Stream]
    counts: Sequence[int]
    batch: int
    seed: int

    def key(self, index: int) -> str:
        """Name the example of item `index`."""
        stream, place = self._draw(index)
        return stream.key(place)

    def _draw(self, index: int) -> tuple[Stream, int]:
        """Return the stream that an item is of, and which of its items."""
        number, offset = divmod(index, self.batch)
        turn, place = divmod(number, sum(self.counts))
        slot, which = shuffled_index(self.seed, turn, sum(self.counts), place), 0
        while slot >= self.counts[which]:
            slot, which = slot - self.counts[which], which + 1
        return self.streams[which], (turn * self.counts[which] + slot) * self.batch + offset

    def __call__(self, index: int) -> Item:
        """Return item `index`."""
        stream, place = self._draw(index)
        return stream(place)


@torch.no_grad()
def _encode(autoencoder: ImageAutoencoder, pixels: Tensor | list[np.ndarray]) -> Tensor:
    """Encode pictures; the mask in a fourth channel is averaged over each latent's pixels."""
    stacked = torch.from_numpy(np.stack(pixels)) if isinstance(pixels, list) else pixels
    pictures, masks = stacked.permute(0, 3, 1, 2).to(autoencoder.device).tensor_split([3], dim=1)
    latents = scale_latents(autoencoder.encode(as_images(pictures)).mode(), autoencoder.config)
    if masks.shape[1]:
        height, width = latents.shape[2:]
        latents = torch.cat([latents, F.adaptive_avg_pool2d(masks / 255, (height, width))], 1)
    return latents.half().cpu()


def _identity(autoencoder: ImageAutoencoder, examples: Examples) -> str:
    return json.dumps([encoder_digest(autoencoder), examples.identity])


def encoder_digest(autoencoder: ImageAutoencoder) -> str:
    """Return what latents depend on: the SHA-256 of an autoencoder's configuration and its encoder's weights."""
    weights = autoencoder.state_dict().items()
    encoder = ((name, value) for name, value in weights if name.startswith(ENCODER))
    return digest_of(json.dumps(asdict(autoencoder.config)), encoder)


def mix(streams: Sequence[Stream], batch: int, seed: int) -> Stream | Mixed:
    """Return one stream of several, batch by batch; in a pass the pictures of each come as often as it says."""
    if len(streams) == 1:
        return streams[0]
    repeats = [stream.examples.repeats if isinstance(stream.examples, Pictures) else 1 for stream in streams]
    counts = [-(-len(stream.latents) * times // batch) for stream, times in zip(streams, repeats, strict=True)]
    return Mixed(streams, counts, batch, seed)
