"""Questions to CLIP: comparison, classification, embedding and search, answered with values; models put in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from PIL import Image
from pydantic import Field

from reverie.errors import ReverieError
from reverie.jobs.events import Event, Finished, Load, ignore
from reverie.media.pictures import decode, encode_preview
from reverie.requests.base import Frozen
from reverie.requests.references import Picture, data_url

if TYPE_CHECKING:
    from reverie.similarity.embed import Clip

Pictures = Annotated[tuple[Picture, ...], Field(max_length=256)]
Texts = Annotated[tuple[str, ...], Field(max_length=1024)]


class Question(Frozen):
    """Something that is answered with values for JSON."""

    kind: ClassVar[str] = ""

    def answer(self, load: Load, index: Path | None) -> dict[str, Any]:
        """Return the answer; `index` is the folder of the server's index."""
        raise NotImplementedError


class Comparison(Question):
    """Ask for the cosines of pictures with texts; where there is one kind alone, of each with each."""

    kind: ClassVar[str] = "compare"

    pictures: Pictures = ()
    texts: Texts = ()

    def answer(self, load: Load, index: Path | None) -> dict[str, Any]:
        """Return rows, columns, cosines and the CLIP's name."""
        if not self.pictures and not self.texts:
            raise ReverieError("nothing to compare; give `pictures` and `texts`")
        return clip().similarity(_images(self.pictures), self.texts).record()


class Classification(Question):
    """Ask which labels fit pictures best (zero-shot classification)."""

    kind: ClassVar[str] = "classify"

    pictures: Pictures
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=4096)]
    top: int = Field(default=5, ge=1, le=100)
    templates: Texts | None = Field(
        default=None, description="sentences with {} for the label; CLIP's own if not given"
    )

    def answer(self, load: Load, index: Path | None) -> dict[str, Any]:
        """Return for each picture labels with their probabilities, the likeliest first."""
        named = clip().classify(_images(self.pictures), self.labels, self.templates, top=self.top)
        guesses = [[one._asdict() for one in found.guesses] for found in named]
        return {"guesses": guesses, "model": clip().name}


class Embedding(Question):
    """Ask for the normalised CLIP embeddings of pictures and of texts."""

    kind: ClassVar[str] = "embed"

    pictures: Pictures = ()
    texts: Texts = ()

    def answer(self, load: Load, index: Path | None) -> dict[str, Any]:
        """Return the vectors of the pictures and then of the texts."""
        rows = [*clip().embed_images(_images(self.pictures)).tolist(), *clip().embed_texts(self.texts).tolist()]
        return {"vectors": rows, "model": clip().name}


class Search(Question):
    """Ask for the pictures of the server's index that are most like a text and a picture, without what else is said."""

    kind: ClassVar[str] = "search"

    text: str = Field(default="", max_length=1000)
    like: Picture | None = None
    without: str = Field(default="", max_length=1000)
    top: int = Field(default=20, ge=1, le=100)

    def answer(self, load: Load, index: Path | None) -> dict[str, Any]:
        """Return the names of what is found, with cosines and small pictures."""
        if index is None:
            raise ReverieError("this server has no index to search")
        from reverie.similarity.index import open_index
        from reverie.similarity.search import Query, find_picture, search

        found = open_index(index)
        like = () if self.like is None else (self.like.image(),)
        query = Query((self.text,) if self.text else (), like, (self.without,) if self.without else ())
        hits = search(found, clip(), query, top=self.top).hits
        images = (_show(find_picture(found, hit.name)) for hit in hits)
        rows = zip(hits, images, strict=True)
        return {"hits": [{"name": hit.name, "cosine": hit.cosine, "image": image} for hit, image in rows]}


class Presence(Question):
    """Ask for a model to be in memory."""

    kind: ClassVar[str] = "load"

    model: str

    def answer(self, load: Load, index: Path | None) -> dict[str, Any]:
        """Load it."""
        return {"name": load(self.model).name}


QUESTIONS: dict[str, type[Question]] = {
    one.kind: one for one in (Comparison, Classification, Embedding, Search, Presence)
}


@dataclass(frozen=True, kw_only=True)
class AnswerJob:
    """Answer a question; the last event holds the answer."""

    request: Question
    index: Path | None
    model: str | None = None

    def check(self) -> None:
        """Do nothing: a question's fields say all."""

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Answer."""
        yield Finished(self.request.answer(load, self.index))


@lru_cache(maxsize=1)
def clip() -> Clip:
    """Load the bundled CLIP once."""
    from reverie.similarity.embed import load_clip  # brings torch, which takes seconds

    return load_clip()


def _images(pictures: tuple[Picture, ...]) -> list[Image.Image | str | Path]:
    return [picture.image() for picture in pictures]


def _show(picture: Image.Image | str | Path) -> str:
    """Return a small copy of a picture as a data URL."""
    return data_url(encode_preview(picture if isinstance(picture, Image.Image) else decode(picture)), "image/jpeg")
