"""Requests for films: keyframes with their times and easing, and how the frames between them are drawn and paced."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Unpack

from pydantic import BeforeValidator, Field, model_validator

from reverie.errors import ReverieError
from reverie.requests import storyboard
from reverie.requests.base import Fraction, Frozen, Guidance, Pixels, SampledRequest, Seed, Strength, check_strength
from reverie.requests.parts import REGIONS, Region
from reverie.requests.pictures import Tile
from reverie.requests.references import FilmFile, Picture, SoundFile

if TYPE_CHECKING:
    from reverie.requests.options import AnimationOptions, KeyframeLike

Easing = Callable[[float], float]
"""The fraction of the time, 0 to 1, to that of the way; 0 and 1 stay, and it never goes back."""

EasingName = Literal["linear", "smooth", "sine", "ease_in", "ease_out", "ease_in_out", "expo", "hold", "jump"]


def linear(t: float) -> float:
    """Go evenly."""
    return t


def smooth(t: float) -> float:
    """Start and stop gently: Hermite's 3t^2 - 2t^3."""
    return t * t * (3 - 2 * t)


def sine(t: float) -> float:
    """Start and stop as a pendulum does: (1 - cos pi t) / 2, written so that a half gives a half."""
    return math.sin(math.pi * t / 2) ** 2


def ease_in(t: float) -> float:
    """Start slowly: t^3."""
    return t**3


def ease_out(t: float) -> float:
    """Stop slowly: 1 - (1 - t)^3."""
    return 1 - (1 - t) ** 3


def ease_in_out(t: float) -> float:
    """Start and stop slowly, each half a cubic."""
    return 4 * t**3 if t < 0.5 else 1 - 4 * (1 - t) ** 3


def expo(t: float) -> float:
    """Start and stop very slowly, each half tenfold powers of 2, brought to meet 0 and 1."""
    half = (2 ** (20 * min(t, 1 - t) - 10) - 2**-10) / (2 * (1 - 2**-10))
    return half if t < 0.5 else 1 - half


def hold(t: float) -> float:
    """Stand for the first and the last quarter, and go gently in between."""
    return smooth(min(1.0, max(0.0, 2 * t - 0.5)))


def jump(t: float) -> float:
    """Stand until the very end: a cut."""
    return 0.0 if t < 1 else 1.0


EASINGS: dict[EasingName, Easing] = {
    "linear": linear,
    "smooth": smooth,
    "sine": sine,
    "ease_in": ease_in,
    "ease_out": ease_out,
    "ease_in_out": ease_in_out,
    "expo": expo,
    "hold": hold,
    "jump": jump,
}


ANCHOR = 0.2  # of the steps are shared where nothing is said: the reference's prompt strength of 0.8

Interpolation = Literal["slerp", "linear"]
Pace = Literal["uniform", "perceptual"]
Drive = Literal["energy", "onsets"]
Fit = Literal["crop", "pad", "stretch"]
InversionName = Literal["ddim", "edict"]


class Keyframe(Frozen):
    """Name a place that the film passes: a prompt, a seed, a picture of one's own or several of these, and when.

    What is None is the film's. With `image` the film passes the picture itself, from the noise that it is inverted to;
    with `vary` a variation of one, by a model that sees pictures, and goes between what it sees.
    `time` is in seconds; keyframes without times are spread evenly. `easing` shapes the way on from here.
    """

    part: ClassVar[str] = "keyframe "

    prompt: str = ""
    negative: str | None = None
    seed: Seed | None = None
    image: Picture | None = None
    vary: Picture | None = None
    guidance: Guidance | None = None
    strength: Strength | None = None
    time: float | None = Field(default=None, ge=0, le=86_400)
    easing: EasingName | None = None

    if TYPE_CHECKING:

        def __init__(self, /, **fields: Any) -> None: ...


def _keyframes(given: object) -> object:
    """Turn what stands for keyframes into them: texts as the storyboard reads them, and fields."""
    if not isinstance(given, list | tuple):
        return given
    found: list[object] = []
    for one in given:
        if isinstance(one, str):
            found += [Keyframe.of(fields) for fields in storyboard.parse(one)]
        else:
            found.append(Keyframe.of(one) if isinstance(one, Mapping) else one)
    return tuple(found)


class Animation(SampledRequest):
    """Ask for a film from keyframe to keyframe; keyframes may be given as texts, such as "2s: an apple @seed 3".

    `negative`, `seed` and `guidance` are those of the keyframes that name none.
    `anchor` is the share of the steps that all frames take together, towards the middle of the prompts: 0 in a film
    through pictures, which is drawn by the sampler of its `inversion`. `frames` or `seconds` count the way from the
    first to the last keyframe, to which `ping_pong` adds the way back; a `loop` leaves out the frame that would repeat
    its first. Of every 1 + `in_between` frames one is drawn, and the others are latents between those. Where
    `init_video` names a film, each frame is drawn over its picture, as far as `strength` says.
    Raises ReverieError, in one line, for any value out of range and for what does not go together.
    """

    kind: ClassVar[str] = "animation"

    keyframes: Annotated[tuple[Keyframe, ...], BeforeValidator(_keyframes)] = Field(
        description='what to draw and when, such as "2s: an apple @seed 3"; may be given several times, for prompts'
    )
    fps: float = Field(
        default=20.0, gt=0, le=240, description="frames a second; those of `init_video`, if there is one"
    )
    frames: int | None = Field(
        default=None, ge=1, le=1_000_000, description="frames from the first to the last keyframe"
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="seconds from the first to the last keyframe; 2 between two, if neither is given",
    )
    width: Pixels | None = Field(
        default=None, description="WIDTHxHEIGHT in pixels; the pictures' or the model's own if not given"
    )
    height: Pixels | None = Field(default=None, description="pixels")
    tile: Tile = Field(
        default="none", description="x, y or xy: directions in which copies of the picture fit each other"
    )
    regions: tuple[Region, ...] = Field(default=(), description=REGIONS)
    anchor: Fraction | None = Field(
        default=None, description="0 to 1, the share of the steps that all frames take together; 0.2 if not given"
    )
    interpolation: Interpolation = Field(
        default="slerp", description="between the prompts' embeddings: slerp or linear"
    )
    easing: EasingName = Field(
        default="linear",
        description="how the film speeds up and slows down between keyframes: smooth, sine, ...; an unknown "
        "name lists them all",
    )
    in_between: int = Field(
        default=0, ge=0, le=100, description="frames between two that are drawn, from the latents between theirs"
    )
    ping_pong: bool = Field(default=False, description="go back the same way")
    loop: bool = Field(default=False, description="let the last frame lead into the first")
    pace: Pace = Field(
        default="uniform",
        description="perceptual places the frames at equal visible change, as the bundled CLIP sees it",
    )
    audio: SoundFile | None = Field(default=None, description="sound file that moves the path, and that the film plays")
    drive: Drive = Field(default="energy", description="what of the sound moves it: energy or onsets")
    smooth: Fraction = Field(default=0.0, description="0 moves by the sound alone, 1 evenly")
    init_video: FilmFile | None = Field(
        default=None, description="film, or folder of pictures, whose frames are drawn anew"
    )
    strength: Strength = Field(default=0.5, description="0 to 1, how far to go from the frames of `init_video`")
    inversion: InversionName = Field(
        default="edict", description="how keyframes' own pictures (@image FILE) become noise: edict or ddim"
    )
    fit: Fit | None = Field(
        default=None, description="how pictures of another size are brought to the film's: crop, pad or stretch"
    )

    if TYPE_CHECKING:

        def __init__(self, *, keyframes: Sequence[KeyframeLike], **options: Unpack[AnimationOptions]) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.keyframes:
            raise ReverieError("no keyframes; give two or more")
        if len(self.keyframes) < 2 and self.init_video is None:
            raise ReverieError("one keyframe makes no film; give two or more, or a film to draw over")
        self._check_times()
        self._check_pictures()
        self._check_pace()
        if self.init_video is not None:
            self._check_init_video()
        if self.shared_steps >= self.steps:
            raise ReverieError(
                f"an anchor of {self.anchoring:g} leaves none of {self.steps} steps to the frames; lower it"
            )
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the keyframes' prompts, and those of regions."""
        return (*(keyframe.prompt for keyframe in self.keyframes), *(region.prompt for region in self.regions))

    @property
    def negatives(self) -> tuple[str, ...]:
        """Return the film's negative prompt and those of keyframes and regions."""
        own = (*(keyframe.negative for keyframe in self.keyframes), *(region.negative for region in self.regions))
        return (self.negative, *(negative or "" for negative in own))

    def _check_times(self) -> None:
        times = [keyframe.time for keyframe in self.keyframes]
        if self.frames is not None and self.seconds is not None:
            raise ReverieError("frames and seconds both say how long the film is; give one of them")
        given = [time for time in times if time is not None]
        if not given:
            count = self.frames if self.frames is not None else round((self.seconds or 86_400) * self.fps)
            if count < len(self.keyframes):
                many = f"{count} frame{'s' * (count != 1)}"
                raise ReverieError(f"{many} cannot show {len(self.keyframes)} keyframes; give at least as many")
            return
        if len(given) < len(times):
            raise ReverieError(f"{len(given)} of {len(times)} keyframes have a time; give one to each, or to none")
        if self.frames is not None:
            raise ReverieError("keyframes with times are placed by the frames a second; give seconds, not frames")
        stops = [round(time * self.fps) for time in given]
        for before, after in pairwise(given):
            if after <= before:
                raise ReverieError(f"a keyframe at {after:g} s stands after one at {before:g} s; let their times rise")
            if round(after * self.fps) == round(before * self.fps):
                raise ReverieError(
                    f"keyframes at {before:g} s and {after:g} s fall on one frame at {self.fps:g} frames a second; "
                    "move them apart, or raise the rate"
                )
        if self.loops_on and stops[0] > 0:
            raise ReverieError(f"a loop begins with its first keyframe; give it the time 0, not {given[0]:g} s")
        last = stops[-1] + 1
        if self.seconds is not None and round(self.seconds * self.fps) < last:
            raise ReverieError(f"the film ends at {self.seconds:g} s, before its keyframe at {given[-1]:g} s is shown")

    def _check_pictures(self) -> None:
        images = [keyframe.image for keyframe in self.keyframes if keyframe.image is not None]
        if not images:
            return
        if self.anchor:
            raise ReverieError("an anchor would lead away from the keyframes' pictures; leave it out, or give 0")
        if self.init_video is not None:
            raise ReverieError("a film that is drawn over one has no pictures at its keyframes; leave out one of them")
        if self.cache_steps > 1:
            raise ReverieError("cached steps do not lead back to the keyframes' pictures; leave out cache_steps")
        if self.width is None and self.height is None and self.fit is None:
            sizes = list(dict.fromkeys(image.size for image in images if image.size))
            if len(sizes) > 1:
                both = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
                raise ReverieError(f"the keyframes' pictures have {both} pixels; choose a fit: crop, pad or stretch")

    def _check_pace(self) -> None:
        eased = self.easing != "linear" or any(keyframe.easing not in (None, "linear") for keyframe in self.keyframes)
        paced = {"easing": eased, "audio": self.audio is not None, "a perceptual pace": self.pace == "perceptual"}
        both = [name for name, given in paced.items() if given]
        if len(both) > 1:
            raise ReverieError(f"{both[0]} and {both[1]} both say how fast the film goes; choose one of them")
        if self.in_between and self.pace == "perceptual":
            raise ReverieError("a perceptual pace measures frames that are drawn; leave out in_between")

    def _check_init_video(self) -> None:
        for name in ("ping_pong", "loop", "in_between", "anchor"):
            if getattr(self, name):
                raise ReverieError(f"{name.replace('_', '-')} does not go with a film to draw over; leave it out")
        if self.pace == "perceptual":
            raise ReverieError("a film to draw over brings its own pace; leave out the perceptual one")
        least = min(keyframe.strength or self.strength for keyframe in self.keyframes)
        check_strength(self.steps, least)

    @property
    def anchoring(self) -> float:
        """Return the share of the steps that all frames take together."""
        if self.anchor is not None:
            return self.anchor
        own = self.init_video is not None or any(keyframe.image is not None for keyframe in self.keyframes)
        return 0.0 if own else ANCHOR

    @property
    def shared_steps(self) -> int:
        """Return how many steps all frames take together."""
        return round(self.steps * self.anchoring)

    @property
    def loops_on(self) -> bool:
        """Tell whether the way goes on from the last keyframe to the first, rather than back."""
        return self.loop and not self.ping_pong
