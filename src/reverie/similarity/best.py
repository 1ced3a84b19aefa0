"""Best-of ranking: of several pictures, those whose CLIP embedding is most like the prompt's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from reverie.errors import ReverieError
from reverie.generate.editing import said
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
    if not said(request.prompt, request.steps):
        raise ReverieError("a prompt without words ranks nothing; write some, or do not ask for the best")
    return request.replace(count=of)


def best(clip: Clip, pictures: Iterable[Image.Image], request: TextToImage) -> list[Scored]:
    """Keep the `request.count` pictures most like its prompt, the best first; equals keep their order.

    Pictures may come one by one: those that are not kept are let go. The prompt is compared without weights, brackets
    and tags. A picture that carries a request carries its `score` beside it, with the CLIP that gave it.
    """
    text = clip.embed_texts([said(request.prompt, request.steps)])[0]
    kept: list[Scored] = []
    count = 0
    for place, picture in enumerate(pictures):
        cosine = (clip.embed_images([picture])[0] @ text).item()
        kept = sorted([*kept, Scored(place, cosine, picture)], key=lambda one: -one.cosine)[: request.count]
        count = place + 1
    for one in kept:
        if REQUEST in one.picture.info:
            told = json.loads(one.picture.info[REQUEST])
            told["score"] = {"clip": clip.name, "cosine": round(one.cosine, 6), "of": count}
            one.picture.info[REQUEST] = json.dumps(told)
    return kept
