"""CLIP embeddings of pictures and texts: `Clip`, which `reverie.load_clip` returns, and best-of ranking by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from reverie.checkpoints.clip_files import OPEN_CLIP_CONFIG, PREPROCESSOR, FoundClip
from reverie.checkpoints.clip_files import load_clip as read_clip
from reverie.checkpoints.weights import read_json
from reverie.codecs.clip_images import Picture, Preprocessing, read_open_clip, read_preprocessing
from reverie.errors import ReverieError
from reverie.generate.prompt import final_words
from reverie.media.pictures import REQUEST
from reverie.models.clip import CLIP
from reverie.requests.pictures import TextToImage
from reverie.requests.references import CLIP_FOLDER, CLIP_NAME
from reverie.runtime.transform import pick_device, pick_dtype
from reverie.similarity.classify import PHOTO, PLAIN, Classifier, Guesses, Likeness, picture_names
from reverie.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """Embed pictures and texts where likeness is the cosine: both sides normalised, float32, on the CPU.

    `templates` are the sentences that labels stand in where a classification names no others.
    """

    model: CLIP
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    templates: tuple[str, ...] = PHOTO
    name: str = "clip"

    def __repr__(self) -> str:
        """Say which model this is."""
        return f"Clip({self.name!r}, {self.width} numbers an embedding, {self.device})"

    @property
    def device(self) -> torch.device:
        """Return where it computes."""
        return self.model.logit_scale.device

    @property
    def width(self) -> int:
        """Return how many numbers an embedding has."""
        return self.model.config.projection_dim

    @property
    def scale(self) -> float:
        """Return what cosines are multiplied with before the softmax: 100 in OpenAI's models."""
        return self.model.logit_scale.exp().item()

    @cached_property
    def identity(self) -> str:
        """Return a key of all that an embedding depends on but its picture or text: weights, words, preprocessing.

        32 hexadecimal digits; whichever layout the weights were read from. Every weight is read once for it.
        """
        metadata = {
            "config": asdict(self.model.config),
            "preprocessing": self.preprocessing.describe(),
            "tokenizer": [self.tokenizer.length, self.tokenizer.vocab, self.tokenizer.merges],
        }
        digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]

    def levels(self, pictures: Sequence[Picture]) -> UInt8[Tensor, "n 3 h w"]:
        """Resize and crop pictures or their files, on the CPU: what a worker can do beside `embed_levels`."""
        return self.preprocessing.levels(pictures)

    @torch.no_grad()
    def embed_levels(self, levels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Embed what `levels` returned, as one batch."""
        pixels = self.preprocessing.normalise(levels.to(self.device)).to(self.model.logit_scale.dtype)
        return _normalise(self.model.encode_image(pixels))

    def embed_images(self, pictures: Sequence[Picture], batch: int = 32) -> Float[Tensor, "n d"]:
        """Embed pictures, or the files at paths. Raises ReverieError, naming the file, where one cannot be read."""
        if isinstance(pictures, str | Path | Image.Image):  # letters of a path would be taken for paths
            raise ReverieError('pictures are given as a list, as in ["bear.png"], not as one alone')
        rows = [self.embed_levels(self.levels(part)) for part in _parts(pictures, batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.width)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "n d"]:
        """Embed texts; what goes beyond the tower's positions is cut off.

        Batches are made of texts of like length and end where their longest does: attention is causal, so what follows
        the end of a text does not change it, and a label of three words costs five positions instead of 77.
        """
        if isinstance(texts, str):
            raise ReverieError('texts are given as a list, as in ["a bear"], not as one alone')
        if not texts:
            return torch.empty(0, self.width)
        tokens = self.tokenizer(texts)
        lengths = (tokens == self.tokenizer.eos_id).int().argmax(1) + 1
        order = lengths.argsort(stable=True)
        rows = []
        for part in order.split(batch):
            ids = tokens[part, : int(lengths[part].max())]
            rows.append(_normalise(self.model.encode_text(ids.to(self.device))))
        return torch.cat(rows)[order.argsort()]

    def similarity(self, images: Sequence[Picture] = (), texts: Sequence[str] = ()) -> Likeness:
        """Compare every picture with every text; where there is only one kind, each of them with each."""
        return Likeness.between(
            picture_names(images), self.embed_images(images), tuple(texts), self.embed_texts(texts), self.name
        )

    def classifier(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Classifier:
        """Embed labels once, to name many pictures by them: each in every template, the embeddings averaged."""
        return Classifier.of(self, labels, templates or self.templates)

    def classify(
        self,
        images: Sequence[Picture],
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        *,
        top: int = 5,
    ) -> list[Guesses]:
        """Name each picture by the `top` likeliest of some labels, with their probabilities (zero-shot classification).

        Each label is said in each of the `templates`, sentences with a {}; None takes its own.
        """
        return self.classifier(labels, templates).name(images, top=top)


def load_clip(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    activation: str | None = None,
    revision: str | None = None,
) -> Clip:
    """Load a CLIP: the bundled one where no path is given, else a folder, a single file or a name on the hub.

    Folders are in transformers' or open_clip's layout, files in these or in OpenAI's own. `activation` ("gelu" or
    "quick_gelu") says how a file was trained that does not tell; `device` and `dtype` are as in `reverie.load`. Raises
    ReverieError where there is no CLIP or it is damaged.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    found = read_clip(
        CLIP_FOLDER if path is None else path, device=place, dtype=kind, activation=activation, revision=revision
    )
    bundled = found.folder is not None and found.folder.resolve() == CLIP_FOLDER.resolve()
    return Clip(
        model=found.clip,
        tokenizer=found.tokenizer,
        preprocessing=_preprocessing(found),
        templates=PLAIN if bundled else PHOTO,  # the bundled one was taught bare names
        name=CLIP_NAME if bundled else found.name,
    )


def _preprocessing(found: FoundClip) -> Preprocessing:
    """Read how the model's pictures are made; a file without settings takes OpenAI's way, at its own size."""
    size = found.clip.config.vision.image_size
    transformers, open_clip = (found.folder and found.folder / name for name in (PREPROCESSOR, OPEN_CLIP_CONFIG))
    if transformers and transformers.is_file():
        made = read_preprocessing(read_json(transformers), str(transformers))
        if made.size != size:
            raise ReverieError(f"{transformers} makes pictures of {made.size} pixels; the vision tower takes {size}")
        return made
    if open_clip and open_clip.is_file():
        return read_open_clip(read_json(open_clip).get("preprocess_cfg") or {}, size, str(open_clip))
    return Preprocessing(size=size, edge=size)


def _normalise(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return F.normalize(features.float(), dim=-1).cpu()


def _parts(items: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class Scored(NamedTuple):
    """Hold a picture, which one it was of those drawn (from 0), and its cosine with the prompt."""

    place: int
    cosine: float
    picture: Image.Image


def rivals(request: TextToImage, of: int) -> TextToImage:
    """Return the request for `of` pictures, of which `request.count` are to be kept.

    Raises ReverieError where that leaves nothing to choose, or a prompt that says nothing to choose by.
    """
    if of < max(2, request.count + 1):
        raise ReverieError(f"the best {request.count} of {of} is no choice; draw more than are kept, at least 2")
    if not final_words(request.prompt, request.steps):
        raise ReverieError("a prompt without words ranks nothing; write some, or do not ask for the best")
    return request.replace(count=of)


class Ranking:
    """Keep the `request.count` pictures most like a request's prompt, of all that are added; equals keep their order.

    The prompt is compared without weights, brackets and tags.
    """

    def __init__(self, clip: Clip, request: TextToImage) -> None:
        self._clip, self._keep = clip, request.count
        self._text = clip.embed_texts([final_words(request.prompt, request.steps)])[0]
        self._best: list[Scored] = []
        self._count = 0

    def add(self, picture: Image.Image) -> None:
        """Compare one more picture; the least like of too many is let go."""
        cosine = (self._clip.embed_images([picture])[0] @ self._text).item()
        ranked = sorted([*self._best, Scored(self._count, cosine, picture)], key=lambda one: -one.cosine)
        self._best, self._count = ranked[: self._keep], self._count + 1

    def best(self) -> list[Scored]:
        """Return the pictures kept, the best first; one that carries its request carries its `score` beside it."""
        for one in self._best:
            if REQUEST in one.picture.info:
                carried = json.loads(one.picture.info[REQUEST])
                carried["score"] = {"clip": self._clip.name, "cosine": round(one.cosine, 6), "of": self._count}
                one.picture.info[REQUEST] = json.dumps(carried)
        return self._best
