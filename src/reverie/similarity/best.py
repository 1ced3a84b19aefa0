"""Best of n: CLIP ranks the pictures of a request by their likeness to its prompt, and each carries its score."""

from __future__ import annotations

import json
from typing import NamedTuple

from PIL import Image

from reverie.errors import ReverieError
from reverie.generate.editing import final_words
from reverie.media.pictures import REQUEST
from reverie.requests.pictures import TextToImage
from reverie.similarity.embed import Clip


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
