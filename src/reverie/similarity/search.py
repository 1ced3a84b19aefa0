"""Search of an index: the embeddings nearest to a query of texts and pictures, by numpy or faiss."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from reverie.codecs.clip_images import Picture
from reverie.errors import ReverieError
from reverie.files import atomic_write, write_text
from reverie.media.pictures import to_rgb
from reverie.similarity.index import Index, IndexEntry, base_of, read_place

Found = tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]
Nearest = Callable[[Index, Float[np.ndarray, " d"], int], Found]
CELLS_FROM = 50_000  # rows from which faiss looks into cells; below, all rows are compared quicker than any is left out
BLOCK = 65_536  # rows that are held in memory while cells are filled
ROUNDING = 1e-5  # by which cosines of float32 may differ
CELL_SHARE = 8  # of the cells, one in so many is looked into


class QueryEmbedder(Protocol):
    """What a query needs of a CLIP."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    def embed_images(self, pictures: Sequence[Picture], batch: int = 32) -> Float[Tensor, "n d"]: ...
    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "n d"]: ...


class Hit(NamedTuple):
    """Name a picture that was found, and say how like the query it is."""

    entry: IndexEntry
    cosine: float

    @property
    def name(self) -> str:
        """Return its path below the collection."""
        return self.entry.place.name


def find_picture(index: Index, name: str | Path) -> Picture:
    """Return the picture of a file, or that of an index whose name its results print. Raises ReverieError."""
    if Path(name).is_file():
        return Path(name)
    entry = index.entries.get(str(name))
    if entry is None:
        raise ReverieError(f"no picture '{name}': there is no such file, and the index '{index.folder}' has none")
    return read_place(base_of(Path(index.header.source)), entry.place)


@dataclass(frozen=True)
class Query:
    """Say what is sought: the normalised sum of embeddings of texts and pictures, without what some others have."""

    texts: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    without_texts: tuple[str, ...] = ()
    without_pictures: tuple[Picture, ...] = ()

    def describe(self) -> str:
        """Write it as a sum."""
        plus = [*self.texts, *map(_name, self.pictures)]
        minus = [*self.without_texts, *map(_name, self.without_pictures)]
        return " ".join([" + ".join(plus), *(f"− {name}" for name in minus)]).strip()

    def embed(self, clip: QueryEmbedder) -> Float[np.ndarray, " d"]:
        """Return its direction. Raises ReverieError where nothing is sought, or what is sought and not is the same."""
        texts, pictures = (*self.texts, *self.without_texts), (*self.pictures, *self.without_pictures)
        if not texts and not pictures:
            raise ReverieError("nothing to look for; give a text, or a picture with `like`")
        parts = [clip.embed_texts(texts)] if texts else []
        parts += [clip.embed_images(pictures)] if pictures else []
        embeddings = torch.cat(parts)
        wanted = [True] * len(self.texts) + [False] * len(self.without_texts)
        wanted += [True] * len(self.pictures) + [False] * len(self.without_pictures)
        plus, minus = embeddings[torch.tensor(wanted)], embeddings[~torch.tensor(wanted)]
        total = _without(plus.sum(0), minus) if len(plus) else -minus.sum(0)
        length = total.norm()
        if length < 1e-3:
            raise ReverieError("what is looked for and what is taken away are the same; nothing is left of the query")
        return (total / length).numpy()


def _name(picture: Picture) -> str:
    return "a picture" if isinstance(picture, Image.Image) else Path(picture).name


def _without(query: Float[Tensor, " d"], unwanted: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Project a query onto what is orthogonal to all unwanted embeddings, so that being like them counts nothing.

    Source: Widdows 2003, "Orthogonal negation in vector spaces for modelling word-meanings and document retrieval". A
    difference, as of word vectors, looks above all for the pictures least like the unwanted. With the bundled CLIP and
    1,500 emoji scenes, 17.3 % of as many first hits as there are pictures of a concept show it by the query alone,
    14.8 % by projection and 2.5 % by the difference (mean of 60 concepts, each without four others).
    """
    directions, lengths, _ = torch.linalg.svd(unwanted.T, full_matrices=False)
    basis = directions[:, lengths > 1e-4]
    return query - basis @ (basis.T @ query)


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
        from reverie.similarity.search import figures

        return f"<p>{escape(self.query)}</p><div>{figures(self)}</div>"


def search(
    index: Index, clip: QueryEmbedder, query: Query, *, top: int = 10, nearest: Nearest | None = None
) -> Results:
    """Find the `top` pictures most like a query, which `clip` embeds; `nearest` is `exact` if not given, or `by_faiss`.

    Raises ReverieError where the index is of another model.
    """
    if top < 1:
        raise ReverieError(f"top is {top}; ask for 1 picture or more")
    if index.header.identity != clip.identity:
        raise ReverieError(
            f"the index '{index.folder}' is of the model '{index.header.model}', not of '{clip.name}' with these "
            "weights; give that `model`, or index anew"
        )
    rows, cosines = (nearest or exact)(index, query.embed(clip), top)
    hits = [Hit(index.by_row[int(row)], float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]
    return Results(index, query.describe(), tuple(hits))


def exact(index: Index, query: Float[np.ndarray, " d"], top: int) -> Found:
    """Compare the query with every row by numpy."""
    cosines = index.vectors @ query
    if len(index) < len(cosines):
        alive = np.zeros(len(cosines), bool)
        alive[list(index.by_row)] = True
        cosines = np.where(alive, cosines, -np.inf)
    top = min(top, len(index))
    if not top:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    least = np.partition(cosines, -top)[-top]
    return _sort_hits(index, query, np.flatnonzero(cosines >= least - ROUNDING), top)


def by_faiss(index: Index, query: Float[np.ndarray, " d"], top: int) -> Found:
    """Ask faiss: below 50,000 rows it compares all, above it looks into an eighth of its cells, which may miss some.

    The cells are built once for the state of the index and kept beside. Raises ReverieError where faiss is missing.
    """
    if not len(index):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    searcher, asked, count = _searcher(index), np.ascontiguousarray(query[None], np.float32), min(top, len(index))
    while True:
        cosines, rows = (found[0] for found in searcher.search(asked, count))
        found = rows >= 0  # in the cells it looked into
        cosines, rows = cosines[found], rows[found]
        if len(rows) < count or count == len(index) or cosines[-1] < cosines[:top][-1] - ROUNDING:
            return _sort_hits(index, query, rows, top)
        count = min(2 * count, len(index))  # what is as like as the last one may not have come


def _sort_hits(index: Index, query: Float[np.ndarray, " d"], rows: Int[np.ndarray, " n"], top: int) -> Found:
    """Return the best of some rows, equals in the order of their rows: a sum in float64 that is the same for equals."""
    rows = np.sort(rows)
    cosines = (index.vectors[rows].astype(np.float64) * query).sum(1)
    rows, cosines = rows[(order := np.argsort(-cosines, kind="stable")[:top])], cosines[order]
    return rows, cosines.astype(np.float32)


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


SIDE = 224  # pixels of a thumbnail
# The page may show the pictures inside it and do nothing else, whatever a file's name says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222;
       background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } .note, figcaption { color: #666 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; height: auto; border-radius: 6px }
figcaption { font-size: .8rem; overflow-wrap: anywhere } figcaption b { color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } figcaption b { color: #ddd } }
"""


def page(title: str, body: str) -> str:
    """Wrap HTML into a page of its own; `body` is HTML already, the title is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def write_page(path: str | Path, text: str) -> None:
    """Write a page beside, then rename it. Raises ReverieError where that cannot be done."""
    write_text(Path(path), text)


def contact_sheet(results: Results) -> str:
    """Show what a search found."""
    head = results.index.header
    summary = f"{len(results.hits)} of {len(results.index)} pictures in {head.source}, by {head.model}"
    return page(results.query, f'<p class="note">{escape(summary)}</p>\n<main>\n{figures(results)}\n</main>')


def figures(results: Results) -> str:
    """Show each picture with its cosine and its name; of what cannot be read any more, only these."""
    return "\n".join(_figure(results, place) for place in range(len(results.hits)))


def thumbnail(picture: Image.Image) -> str:
    """Write a small picture as a data URI."""
    small = to_rgb(picture).copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _figure(results: Results, place: int) -> str:
    hit = results.hits[place]
    name = escape(hit.name)
    try:
        image = f'<img src="{thumbnail(results.index.picture(hit.entry))}" alt="{name}">'
    except ReverieError:
        image = "<p>(cannot be read any more)</p>"
    return f"<figure>{image}<figcaption><b>{hit.cosine:.3f}</b> {name}</figcaption></figure>"
