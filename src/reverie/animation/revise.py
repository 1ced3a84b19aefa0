"""Frames of an existing film, resampled to the new film's rate: each is the start of image to image.

Each frame is image to image from there, all with the same noise: so what stands still in the film does in the drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from PIL import Image

from reverie.errors import ReverieError

SLACK = 1e-6  # pictures: rounding by which the time of a frame may fall short of that of its picture

Fit = Callable[[Image.Image], Image.Image]
"""Bring a picture to the size of the film."""


def source_pictures(
    pictures: Iterable[Image.Image], source_fps: float, fps: float, total: int, fit: Fit
) -> Iterator[Image.Image]:
    """Give the picture that a film of `source_fps` shows at the time of each of `total` frames, `fps` a second.

    Pictures are repeated (as the same object) or left out as the rates ask; after the end the last one stays.
    `pictures` is read one by one and no farther than needed; what is shown is brought to size once. Raises ReverieError
    for a film without pictures.
    """
    source = iter(pictures)
    latest = next(source, None)
    if latest is None:
        raise ReverieError("the film to start from holds no pictures; give one that does")
    read, shown = 0, fit(latest)
    for index in range(total):
        before = read
        while read < int(index / fps * source_fps + SLACK) and (following := next(source, None)) is not None:
            latest, read = following, read + 1
        if read > before:
            shown = fit(latest)
        yield shown


def frames_in(count: int, source_fps: float, fps: float) -> int:
    """Return how many frames, `fps` a second, last as long as `count` pictures of a film; at least one."""
    return max(1, round(count / source_fps * fps))
