"""Which options does `Pipeline.music` take? The fields of `Music`, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from reverie.codecs.sound import Sound
from reverie.generate.options import PictureLike
from reverie.generate.requests import SamplerName, ScheduleName
from reverie.music.request import Stop
from reverie.music.source import Source

StopLike = Stop | Mapping[str, Any] | str


class MusicOptions(TypedDict, total=False):
    """Name the fields of `Music` but the prompt."""

    negative: str
    seed: int | None
    steps: int
    guidance: float | None
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
    sampler: SamplerName
    schedule: ScheduleName
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    cache_steps: int
    merge_tokens: float
    threshold: float | None
    clip_skip: int
    loras: Sequence[str]
    embeddings: Sequence[str]
