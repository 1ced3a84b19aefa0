"""How does a picture come to the size of the film? It is cropped, padded or stretched, where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageOps

from reverie.errors import ReverieError
from reverie.media.masks import on_white

Size = tuple[int, int]

_LANCZOS = Image.Resampling.LANCZOS


def crop(picture: Image.Image, size: Size) -> Image.Image:
    """Fill the size and cut off what lies beyond it, on both sides alike."""
    return ImageOps.fit(picture, size, _LANCZOS)


def pad(picture: Image.Image, size: Size) -> Image.Image:
    """Show all of the picture, in the middle of black."""
    return ImageOps.pad(picture, size, _LANCZOS, color="black")


def stretch(picture: Image.Image, size: Size) -> Image.Image:
    """Bring width and height to the size, each by itself."""
    return picture.resize(size, _LANCZOS)


FITS: dict[str, Callable[[Image.Image, Size], Image.Image]] = {"crop": crop, "pad": pad, "stretch": stretch}


def fitted(picture: Image.Image, size: Size, fit: str | None) -> Image.Image:
    """Bring a picture to a size in pixels, transparent parts on white.

    Raises ReverieError for one of another size where no fit, a name of FITS, is given.
    """
    picture = on_white(picture)
    if picture.size == size:
        return picture
    if fit is None:
        given, film = (f"{width}x{height}" for width, height in (picture.size, size))
        raise ReverieError(f"a picture has {given} pixels and the film {film}; choose a fit: {', '.join(FITS)}")
    return FITS[fit](picture, size)
