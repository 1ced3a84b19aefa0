"""Search of an index by a query: embeddings of texts and pictures, added and subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reverie.codecs.clip_images import Picture
from reverie.errors import ReverieError
from reverie.files import atomic_write
from reverie.similarity.index import Entry, Index

Found = tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]
Nearest = Callable[[Index, Float[np.ndarray, " d"], int], Found]
CELLS_FROM = 50_000  # rows from which faiss looks into cells; below, all rows are compared quicker than any is left out
BLOCK = 65_536  # rows that are held in memory while cells are filled
CELL_SHARE = 8  # of the cells, one in so many is looked into


class Embedder(Protocol):
    """What a query needs of a CLIP."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    def embed_images(self, pictures: Sequence[Picture], batch: int = 32) -> Float[Tensor, "n d"]: ...
    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "n d"]: ...


class Hit(NamedTuple):
    """Name a picture that was found, and say how like the query it is."""

    entry: Entry
    cosine: float

    @property
    def name(self) -> str:
        """Return its path below the collection."""
        return self.entry.place.name


@dataclass(frozen=True)
class Query:
    """Say what is sought: the normalised sum of embeddings of texts and pictures, those to be unlike subtracted."""

    texts: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    without_texts: tuple[str, ...] = ()
    without_pictures: tuple[Picture, ...] = ()

    def describe(self) -> str:
        """Write it as a sum."""
        plus = [*self.texts, *(Path(str(picture)).name for picture in self.pictures)]
        minus = [*self.without_texts, *(Path(str(picture)).name for picture in self.without_pictures)]
        return " ".join([" + ".join(plus), *(f"− {name}" for name in minus)]).strip()

    def embed(self, clip: Embedder) -> Float[np.ndarray, " d"]:
        """Return its direction. Raises ReverieError where nothing is sought, or what is sought and not is the same."""
        texts, pictures = (*self.texts, *self.without_texts), (*self.pictures, *self.without_pictures)
        if not texts and not pictures:
            raise ReverieError("nothing to look for; give a text, or a picture with --like")
        signs = [1.0] * len(self.texts) + [-1.0] * len(self.without_texts)
        signs += [1.0] * len(self.pictures) + [-1.0] * len(self.without_pictures)
        parts = [clip.embed_texts(texts)] if texts else []
        parts += [clip.embed_images(pictures)] if pictures else []
        total = torch.tensor(signs) @ torch.cat(parts)
        length = total.norm()
        if length < 1e-6:
            raise ReverieError("what is looked for and what is taken away are the same; nothing is left of the query")
        return (total / length).numpy()


@dataclass(frozen=True)
class Results:
    """Hold the pictures that were found, the most alike first."""

    index: Index
    query: str
    hits: tuple[Hit, ...]

    def record(self) -> dict[str, object]:
        """Return plain values for JSON."""
        hits = [{"name": hit.name, "cosine": round(hit.cosine, 6)} for hit in self.hits]
        return {"query": self.query, "model": self.index.header.model, "source": self.index.header.source, "hits": hits}

    def _repr_html_(self) -> str:
        """Show the pictures in a notebook."""
        from reverie.similarity.page import figures

        return f"<p>{escape(self.query)}</p><div>{figures(self)}</div>"


def search(index: Index, clip: Embedder, query: Query, *, top: int = 10, nearest: Nearest | None = None) -> Results:
    """Find the pictures most like a query; `nearest` is `exact` if not given, or `by_faiss`.

    Raises ReverieError where the index is of another model.
    """
    if top < 1:
        raise ReverieError(f"top is {top}; ask for 1 picture or more")
    if index.header.identity != clip.identity:
        raise ReverieError(
            f"the index '{index.folder}' is of the model '{index.header.model}', not of '{clip.name}' with these "
            "weights; give that --model, or index anew"
        )
    rows, cosines = (nearest or exact)(index, query.embed(clip), top)
    hits = [Hit(index.by_row[int(row)], float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]
    return Results(index, query.describe(), tuple(hits))


def exact(index: Index, query: Float[np.ndarray, " d"], top: int) -> Found:
    """Compare the query with every row by numpy. Equals stand in the order of their rows."""
    cosines = index.vectors @ query
    if len(index) < len(cosines):
        alive = np.zeros(len(cosines), bool)
        alive[list(index.by_row)] = True
        cosines = np.where(alive, cosines, -np.inf)
    top = min(top, len(index))
    if not top:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    least = np.partition(cosines, -top)[-top]
    rows = np.flatnonzero(cosines >= least)
    rows = rows[np.argsort(-cosines[rows], kind="stable")][:top]
    return rows, cosines[rows]


def by_faiss(index: Index, query: Float[np.ndarray, " d"], top: int) -> Found:
    """Ask faiss: below 50,000 rows it compares all, above it looks into an eighth of its cells, which may miss some.

    The cells are built once for the state of the index and kept beside. Raises ReverieError where faiss is missing.
    """
    if not len(index):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    cosines, rows = _searcher(index).search(np.ascontiguousarray(query[None], np.float32), min(top, len(index)))
    found = rows[0] >= 0  # in the cells it looked into
    return rows[0][found], cosines[0][found]


NEAREST: dict[str, Nearest] = {"numpy": exact, "faiss": by_faiss}


@lru_cache(maxsize=1)
def _searcher(index: Index) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ReverieError("faiss is not installed; pip install 'reverie[faiss]', or search with numpy") from error
    head, rows = index.header, np.array(sorted(index.by_row), np.int64)
    flat = faiss.IndexFlatIP(head.width)
    if len(rows) < CELLS_FROM:
        compared = faiss.IndexIDMap2(flat)
        compared.add_with_ids(index.vectors[rows], rows)
        return compared
    file = index.folder / f"faiss-{head.generation}-{head.journal}.index"
    if file.is_file():
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    cells = int(4 * len(rows) ** 0.5)
    made = faiss.IndexIVFFlat(flat, head.width, cells, faiss.METRIC_INNER_PRODUCT)
    made.nprobe = max(1, cells // CELL_SHARE)
    made.train(index.vectors[rows[:: max(1, len(rows) // (64 * cells))]])
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        made.add_with_ids(index.vectors[part], part)
    for old in index.folder.glob("faiss-*.index"):
        old.unlink()
    with atomic_write(file) as temporary:
        faiss.write_index(made, str(temporary))
    return made
