"""Random access to the pictures of a captioned collection: webdataset shards, a folder, or a list."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PIL import Image

from reverie.data.located import Located, locate
from reverie.media.pictures import decode, to_rgb

PICTURES = ("jpg", "jpeg", "png", "webp")  # suffixes of pictures in shards and folders, the first found is read


class Captioned(Protocol):
    """A collection of pictures with captions, numbered from 0."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> list[object]:
        """Return which files it is made of, and when they were last changed, in plain values."""

    def caption(self, index: int) -> str:
        """Return a caption."""

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB. Raises ReverieError, naming it, where it cannot be read."""


def open_captioned(path: str | Path, default: str = "") -> Captioned:
    """Open a folder of shards, one shard, a folder of pictures with captions, or a list of them (`located.locate`).

    A picture of a folder that has no caption has the `default`, or is left out where that is empty. Raises ReverieError
    where there is no captioned picture, or a shard is damaged.
    """
    return CaptionedPictures(locate(path, "pictures", PICTURES, default))


class CaptionedPictures:
    """Read the pictures of a collection of files."""

    def __init__(self, found: Located) -> None:
        self.found = found
        self.caption = found.caption

    def __len__(self) -> int:
        return len(self.found)

    @property
    def identity(self) -> list[object]:
        """Return which files it is made of, and when they were last changed."""
        return self.found.identity

    def picture(self, index: int) -> Image.Image:
        """Return a picture as RGB, upright and on white. Raises ReverieError where it is damaged."""
        file = self.found.content(index)
        return to_rgb(decode(file, f"the picture {file}"))
