"""Measurements of a shard's samples: sizes, CLIP's cosine of picture and text, LAION's aesthetic score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError
from reverie.files import atomic_write, reason_of, write_text
from reverie.media.pictures import read_stored, upright
from reverie.runtime import one_thread
from reverie.similarity.curation.rules import Measurement
from reverie.similarity.curation.samples import Message, Sample, read_samples
from reverie.similarity.embed import Clip, load_clip


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """Score normalised embeddings: about 1 to 10, where LAION-Aesthetics keeps those over 5."""

    weight: Float[Tensor, "1 d"] = field(repr=False)
    bias: Float[Tensor, " 1"]

    def __call__(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return a score each."""
        return (embeddings @ self.weight.T + self.bias)[:, 0]

    @property
    def identity(self) -> str:
        """Return a key of its weights."""
        content = torch.cat([self.weight[0], self.bias]).contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def load_aesthetic(path: str | Path, width: int) -> AestheticHead:
    """Load a head for embeddings of `width` numbers from .pth or .safetensors, which is read as data.

    LAION's first is one linear layer (sa_0_4_vit_l_14_linear.pth). Its second (sac+logos+ava1-l14-linearMSE.pth) has
    five in a row with nothing between them but drop-out, so it is one as well: their product. Raises ReverieError where
    the file holds no such layers or is made for another CLIP.
    """
    source = open_source(Path(path))
    names = [name.removesuffix("weight") for name in source.names() if name.rpartition(".")[2] == "weight"]
    try:
        layers = sorted(names, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
        weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        for name in layers:
            step = source.tensor(f"{name}weight").double()
            if step.ndim != 2 or step.shape[1] != weight.shape[0]:
                raise ReverieError(
                    f"'{path}' scores embeddings of {step.shape[-1]} numbers; this CLIP makes {width}. LAION's heads "
                    "are for ViT-L/14 (768)"
                )
            weight, bias = step @ weight, step @ bias + source.tensor(f"{name}bias").double()
    except KeyError as error:
        raise ReverieError(f"'{path}' is no aesthetic head: it has no {error}") from error
    if not layers or len(weight) != 1:
        raise ReverieError(f"'{path}' is no aesthetic head; it should hold linear layers that end in one number")
    return AestheticHead(weight.float(), bias.float())


BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Say which CLIP measures, as values that travel to other processes and machines."""

    model: str | None = None
    activation: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str | None = None
    aesthetic: str | None = None
    """File of an aesthetic head."""

    @cached_property
    def clip(self) -> Clip:
        """Load the CLIP."""
        return load_clip(
            self.model, device=self.device, dtype=self.dtype, activation=self.activation, revision=self.revision
        )

    @cached_property
    def head(self) -> AestheticHead | None:
        """Load the aesthetic head."""
        return load_aesthetic(self.aesthetic, self.clip.width) if self.aesthetic else None

    @cached_property
    def identity(self) -> str:
        """Return a key of all weights."""
        return f"{self.clip.identity} {self.head.identity if self.head else ''}"


@dataclass(frozen=True)
class Measuring:
    """Measure shards: call it with a shard's path. It goes to other processes and machines as it is."""

    folder: Path
    """Where the measurements go: NAME.json, and NAME.npy with the embeddings, a row a sample."""
    scoring: Scoring | None
    """None where no rule needs a CLIP."""
    identity: str
    """Key of the scoring's weights, so that measurements of others are not taken for these."""

    def __call__(self, shard: str) -> Message:
        """Measure a shard, if that is not done; tell how many samples it has, and what is wrong with it."""
        path = Path(shard)
        target = self.folder / f"{path.stem}.json"
        key = self._key(path)
        found = read_measured(target)
        # What a CLIP measured is good also where none is asked for: it cost much, and may be asked for again.
        if found is None or found["key"] != key or (self.scoring and found["identity"] != self.identity):
            with one_thread():
                measured, vectors, damage = self._measure(path)
            with atomic_write(target.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
                np.save(file, vectors)
            found = {
                "key": key,
                "identity": self.identity,
                "damage": damage,
                "samples": [asdict(sample) for sample in measured],
            }
            write_text(target, json.dumps(found))
        return {"shard": shard, "samples": len(found["samples"]), "damage": found["damage"]}

    def _key(self, shard: Path) -> str:
        """Return a key of the shard's file."""
        stat = shard.stat()
        return f"1 {stat.st_size} {stat.st_mtime_ns}"

    def _measure(self, shard: Path) -> tuple[list[Measurement], np.ndarray, str]:
        samples = _Samples(shard)
        measured: list[Measurement] = []
        width = load_scoring(self.scoring).clip.width if self.scoring else 0
        vectors: list[np.ndarray] = [np.zeros((0, width), np.float32)]
        iterator = iter(samples)
        while batch := list(islice(iterator, BATCH)):
            some, rows = _score(batch, self.scoring)
            measured += some
            vectors.append(rows)
        return measured, np.concatenate(vectors), samples.damage


class _Samples:
    """Give a shard's samples up to where it is damaged, and remember the damage."""

    def __init__(self, shard: Path) -> None:
        self.shard, self.damage = shard, ""

    def __iter__(self) -> Iterator[Sample]:
        try:
            yield from read_samples(self.shard)
        except ReverieError as error:
            self.damage = str(error)


def _score(samples: Iterable[Sample], scoring: Scoring | None) -> tuple[list[Measurement], np.ndarray]:
    """Measure some samples; where there is no picture, the row is zero."""
    plain = [_plain(sample) for sample in samples]
    measured = [it for it, _ in plain]
    if scoring is None:
        return measured, np.zeros((len(plain), 0), np.float32)
    tools = load_scoring(scoring)
    rows = torch.zeros(len(plain), tools.clip.width)
    readable = [place for place, (_, picture) in enumerate(plain) if picture is not None]
    if readable:
        pictures = [picture for _, picture in plain if picture is not None]
        rows[readable] = tools.clip.embed_images(pictures, BATCH)
        texts = tools.clip.embed_texts([measured[place].text or "" for place in readable])
        cosines = (rows[readable] * texts).sum(-1).tolist()
        scores = tools.head(rows[readable]).tolist() if tools.head else [None] * len(readable)
        for place, cosine, score in zip(readable, cosines, scores, strict=True):
            it = measured[place]
            measured_fields = asdict(it) | {"cosine": cosine if it.text is not None else None, "aesthetic": score}
            measured[place] = Measurement(**measured_fields)
    return measured, rows.numpy()


def _plain(sample: Sample) -> tuple[Measurement, Image.Image | None]:
    content, text = sample.picture, sample.text
    if content is None:
        return Measurement(key=sample.key, text=text), None
    try:
        picture = read_stored(content)
    except ReverieError as error:
        return Measurement(key=sample.key, text=text, bytes=len(content), error=reason_of(error)), None
    width, height = upright(picture).size
    return (
        Measurement(key=sample.key, text=text, bytes=len(content), width=width, height=height),
        picture.convert("RGB"),  # as CLIP's references see it
    )


@lru_cache(maxsize=1)
def load_scoring(scoring: Scoring) -> Scoring:
    """Keep the loaded models of a process from shard to shard."""
    return scoring


def read_measured(file: Path) -> Message | None:
    """Read a shard's measurements; None where there are none, or they were cut off."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and {"key", "identity", "damage", "samples"} <= set(found)
    return found if whole and file.with_suffix(".npy").is_file() else None
