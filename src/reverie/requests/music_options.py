"""Which options does `Pipeline.music` take? The fields of `Music`, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from reverie.media.sound import Sound
from reverie.requests.music import Stop
from reverie.requests.options import PictureLike, SampledOptions
from reverie.requests.sources import Source

StopLike = Stop | Mapping[str, Any] | str


class MusicOptions(SampledOptions, total=False):
    """Name the fields of `Music` but the prompt."""

    seconds: float | None
    bpm: float | None
    beats: int
    loop: bool
    stereo: bool
    count: int
    to: StopLike | Sequence[StopLike]
    alpha: float | None
    walk: int | None
    init: Source | Sound | Image.Image | str | Path | None
    strength: float
    mask: PictureLike | None
