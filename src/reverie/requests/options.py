"""Which options do the methods of a pipeline take? The fields of the requests, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from PIL import Image

from reverie.requests.base import SamplerName, ScheduleName
from reverie.requests.parts import ControlInput, Hires, Refiner, Variation
from reverie.requests.pictures import Fill, Tile
from reverie.requests.references import Picture

PictureLike = Picture | Image.Image | str | Path


class SampledOptions(TypedDict, total=False):
    """Name the fields of `Sampled`."""

    negative: str
    seed: int | None
    steps: int
    guidance: float | None
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
    folders: Sequence[str]
    sums: Sequence[tuple[str, str]]


class TextToImageOptions(SampledOptions, total=False):
    """Name the fields of `TextToImage` but the prompt."""

    width: int | None
    height: int | None
    count: int
    controls: Sequence[ControlInput]
    variation: Variation | None
    hires: Hires | None
    refiner: Refiner | None
    tile: Tile
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crop: tuple[int, int] | None
    negative_target_size: tuple[int, int] | None


class ImageToImageOptions(TextToImageOptions, total=False):
    """Name the fields of `ImageToImage` but the prompt and the picture."""

    strength: float


class InpaintOptions(ImageToImageOptions, total=False):
    """Name the fields of `Inpaint` but the prompt, the picture and the mask."""

    mask_blur: int
    only_masked: bool
    padding: int
    fill: Fill


class OutpaintOptions(TextToImageOptions, total=False):
    """Name the fields of `Outpaint` but the prompt and the picture."""

    left: int
    right: int
    top: int
    bottom: int
    strength: float
    mask_blur: int
    fill: Fill
