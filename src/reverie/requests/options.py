"""The options of the methods of a `Pipeline`, and of the requests' constructors, for type checkers and editors.

Written by scripts/write_options.py from the fields of the requests; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from PIL import Image

if TYPE_CHECKING:
    from reverie.media.sound import Sound
    from reverie.requests.films import Drive, EasingName, Fit, Interpolation, InversionName, Keyframe, Pace
    from reverie.requests.music import Stop
    from reverie.requests.parts import (
        ControlInput,
        Hires,
        IPAdapterInput,
        Refiner,
        Region,
        Variation,
        VariedPicture,
    )
    from reverie.requests.pictures import Fill, Rng, Tile
    from reverie.requests.references import Picture, SoundInput

PictureLike: TypeAlias = "Picture | Image.Image | str | Path"
SoundLike: TypeAlias = "SoundInput | Sound | Image.Image | str | Path"
KeyframeLike: TypeAlias = "Keyframe | Mapping[str, Any] | str"
StopLike: TypeAlias = "Stop | Mapping[str, Any] | str"
SamplerLike: TypeAlias = (
    Literal[
        "ddpm",
        "ddim",
        "plms",
        "euler",
        "euler_ancestral",
        "heun",
        "dpm2",
        "dpm2_ancestral",
        "lms",
        "dpmpp_2s_ancestral",
        "dpmpp_2m",
        "dpmpp_sde",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
        "unipc",
        "unipc_bh1",
        "unipc_bh2",
        "lcm",
        "tcd",
    ]
    | str
)
ScheduleLike: TypeAlias = (
    Literal[
        "normal",
        "karras",
        "exponential",
        "sgm_uniform",
        "linspace",
        "leading",
        "trailing",
        "ddim",
        "lcm",
        "tcd",
        "simple",
        "ddim_uniform",
        "align_your_steps",
        "align_your_steps_xl",
        "gits",
        "a1111_ddim",
        "a1111_unipc",
        "a1111_lcm",
    ]
    | str
)


class SampledOptions(TypedDict, total=False):
    """The fields of `SampledRequest`."""

    guidance: float | None
    negative: str
    seed: int | None
    steps: int
    sampler: SamplerLike
    schedule: ScheduleLike
    timesteps: Sequence[float]
    sigmas: Sequence[float]
    eta: float | None
    discard_penultimate: bool
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    perturbed_guidance: float
    cfg_pp: bool
    freeu: tuple[float, float, float, float] | None
    cache_steps: int
    merge_tokens: float
    threshold: float | None
    clip_skip: int
    loras: Sequence[str]
    embeddings: Sequence[str]
    folders: Sequence[str]
    sums: tuple[tuple[str, str], ...]


class TextToImageOptions(SampledOptions, total=False):
    """The fields of `TextToImage` but prompt."""

    width: int | None
    height: int | None
    count: int
    template: str
    negative_template: str
    controls: Sequence[ControlInput]
    vary: Sequence[VariedPicture]
    noise_level: int | None
    ip_adapters: Sequence[IPAdapterInput]
    regions: Sequence[Region]
    depth: PictureLike | None
    variation: Variation | None
    hires: Hires | None
    refiner: Refiner | None
    rng: Rng
    zero_negative: bool | None
    tile: Tile
    tile_size: int | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crop: tuple[int, int] | None
    negative_target_size: tuple[int, int] | None


class ImageToImageOptions(TextToImageOptions, total=False):
    """The fields of `ImageToImage` but init."""

    strength: float
    image_guidance: float | None


class InpaintOptions(ImageToImageOptions, total=False):
    """The fields of `Inpaint` but mask."""

    mask_blur: int
    only_masked: bool
    padding: int
    fill: Fill


class OutpaintOptions(TextToImageOptions, total=False):
    """The fields of `Outpaint` but init."""

    left: int
    right: int
    top: int
    bottom: int
    strength: float
    mask_blur: int
    fill: Fill


class AnimationOptions(SampledOptions, total=False):
    """The fields of `Animation` but keyframes."""

    fps: float
    frames: int | None
    seconds: float | None
    width: int | None
    height: int | None
    tile: Tile
    regions: Sequence[Region]
    anchor: float | None
    interpolation: Interpolation
    easing: EasingName
    in_between: int
    ping_pong: bool
    loop: bool
    pace: Pace
    audio: str | Path | None
    drive: Drive
    smooth: float
    init_video: str | Path | None
    strength: float
    inversion: InversionName
    fit: Fit | None


class MusicOptions(SampledOptions, total=False):
    """The fields of `Music` but prompt."""

    seconds: float | None
    bpm: float | None
    beats: int
    loop: bool
    stereo: bool
    count: int
    to: StopLike | Sequence[StopLike]
    alpha: float | None
    walk: int | None
    init: SoundLike | None
    strength: float
    mask: PictureLike | None
