"""Requests for music: prompts and the way between them, length and tempo, the sound it starts from, a film to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, Unpack

from pydantic import BeforeValidator, Field, model_validator

from reverie.errors import ReverieError
from reverie.requests import storyboard
from reverie.requests.base import (
    MAX_SEED,
    Frozen,
    Guidance,
    Pixels,
    Request,
    SampledRequest,
    Seed,
    Strength,
    check_strength,
)
from reverie.requests.references import ModelName, Picture, SoundInput

if TYPE_CHECKING:
    from reverie.requests.options import MusicOptions

SHORTEST, LONGEST = 0.1, 3600.0  # seconds
SLOWEST, FASTEST = 20, 400  # beats a minute
MINUTE = 60.0
_TEMPO = re.compile(r"(\d+(?:\.\d+)?)\s*(?:bpm\b|拍)", re.IGNORECASE)
_CHINESE = re.compile("[一-鿿]")


def tempos(*prompts: str) -> list[float]:
    """Return the beats a minute that texts name, in order: "112 bpm", "112拍"."""
    return [float(match[1]) for prompt in prompts for match in _TEMPO.finditer(prompt)]


Move = Literal["energy", "onsets", "linear", "smooth", "sine", "ease_in", "ease_out", "expo", "hold", "jump"]


class Stop(Frozen):
    """Name a place that the music goes to: a prompt, and what changes with it. What is None is the request's."""

    part: ClassVar[str] = "stop "

    prompt: str = ""
    negative: str | None = None
    seed: Seed | None = None
    guidance: Guidance | None = None
    strength: Strength | None = None


def _stops(given: object) -> object:
    """Turn what stands for stops into them: one or several, as texts such as "blues @seed 3" or as fields."""
    if isinstance(given, str | Mapping | Stop):
        given = (given,)
    if not isinstance(given, list | tuple):
        return given
    found: list[object] = []
    for one in given:
        if isinstance(one, str):
            found += [Stop.of(fields) for fields in storyboard.parse(one)]
        else:
            found.append(Stop.of(one) if isinstance(one, Mapping) else one)
    return tuple(found)


class Music(SampledRequest):
    """Ask for `count` clips of music; clip k is the one that the seeds + k alone would give.

    A clip lasts `seconds`, or as long as the model's own where None; with `bpm` the nearest number of whole bars. With
    `to` it is what lies `alpha` of the way to the stops there (1 is the first of them, 2 the second), or with `walk` so
    many clips on the way from the prompt to the last stop, in one piece. The end of a `loop` leads into its beginning.
    `init` is played anew as far as `strength` says, where `mask` is white, and says how long a clip is.
    Raises ReverieError, in one line, for any value out of range and for what does not go together.
    """

    kind: ClassVar[str] = "music"

    prompt: str = Field(default="", description="what to play; may be empty")
    seconds: float | None = Field(
        default=None,
        ge=SHORTEST,
        le=LONGEST,
        description="seconds of a clip, or of each clip of a walk; the model's own if not given",
    )
    bpm: float | None = Field(
        default=None,
        ge=SLOWEST,
        le=FASTEST,
        description="beats a minute, added to the prompt; the length becomes whole bars",
    )
    beats: int = Field(default=4, ge=1, le=32, description="beats of a bar")
    loop: bool = Field(default=False, description="let the end lead into the beginning")
    stereo: bool = Field(
        default=False, description="two channels, where the model hears one: the same sound from two sides"
    )
    count: int = Field(default=1, ge=1, le=10_000, description="how many clips")
    to: Annotated[tuple[Stop, ...], BeforeValidator(_stops)] = Field(
        default=(), description='prompt to go to, such as "blues @seed 3 @guidance 4"; may be given several times'
    )
    alpha: float | None = Field(
        default=None, ge=0, description="how far to go and stay: 0 is the prompt, 1 the first of `to`, 2 the second"
    )
    walk: int | None = Field(
        default=None, ge=2, le=10_000, description="clips from the prompt to the last of `to`, in one piece"
    )
    init: SoundInput | None = Field(
        default=None, description="sound, or picture of a spectrogram, to play anew; it says how long the music is"
    )
    strength: Strength = Field(default=0.75, description="0 to 1, how far to go from it; 1 forgets it")
    mask: Picture | None = Field(
        default=None, description="picture over the spectrogram that is white where it is played anew; the rest stays"
    )

    if TYPE_CHECKING:

        def __init__(self, *, prompt: str = "", **options: Unpack[MusicOptions]) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Self:
        highest = max([self.seed, *(stop.seed for stop in self.to if stop.seed is not None)])
        if highest + self.count - 1 > MAX_SEED:
            raise ReverieError(f"seed {highest} with count {self.count} passes the largest seed, {MAX_SEED}; lower one")
        self._check_way()
        self._check_source()
        return self

    def _check_way(self) -> None:
        if not self.to and (self.alpha is not None or self.walk is not None):
            given = "alpha" if self.alpha is not None else "a walk"
            raise ReverieError(f"{given} needs a second prompt; say with `to` where it leads")
        if self.alpha is not None and self.walk is not None:
            raise ReverieError("alpha stands at one place and a walk goes all the way; give one of them")
        if self.to and self.alpha is None and self.walk is None:
            raise ReverieError("there is a second prompt and nothing says how far to go; give alpha or walk")
        if self.alpha is not None and self.alpha > len(self.to):
            raise ReverieError(f"alpha {self.alpha:g} lies beyond the last prompt; give 0 to {len(self.to)}")
        if self.walk is not None and self.loop:
            raise ReverieError("a walk does not come back to where it began, as a loop must; leave out one of them")

    def _check_source(self) -> None:
        if self.init is None:
            if self.mask is not None:
                raise ReverieError("a mask says what of a sound stays; give the sound with init")
            return
        if self.seconds is not None or self.bpm is not None:
            name = "seconds" if self.seconds is not None else "bpm"
            raise ReverieError(f"the sound of init says how long the clip is; leave out {name}")
        strengths = [self.strength, *(stop.strength for stop in self.to if stop.strength is not None)]
        if self.walk is not None and len(set(strengths)) > 1:
            raise ReverieError("a walk over a sound is noised all at once; give its stops no strength of their own")
        for strength in strengths:
            check_strength(self.steps, strength)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the prompts of all stops."""
        return (self.prompt, *(stop.prompt for stop in self.to))

    @property
    def negatives(self) -> tuple[str, ...]:
        """Return the negative prompts of all stops."""
        return (self.negative, *(stop.negative or "" for stop in self.to))

    @property
    def place(self) -> float:
        """Return how far the music is on the way through its stops, where it does not walk."""
        return self.alpha or 0.0

    @property
    def stops(self) -> tuple[Stop, ...]:
        """Return all that the way passes, the prompt first, with nothing left open and the tempo in their words."""
        own = {name: getattr(self, name) for name in ("negative", "seed", "guidance", "strength")}
        given = [stop.model_dump(exclude_none=True) for stop in self.to]
        stops = [Stop(prompt=self.prompt, **own), *(Stop(**{**own, **fields}) for fields in given)]
        return tuple(stop.replace(prompt=self._in_tempo(stop.prompt)) for stop in stops)

    @property
    def tempo(self) -> float | None:
        """Return the beats a minute, as asked or as the prompt names them; None for what is no tempo, such as 0 bpm."""
        if self.bpm is not None or not (named := tempos(self.prompt)):
            return self.bpm
        return named[0] if SLOWEST <= named[0] <= FASTEST else None

    def _in_tempo(self, prompt: str) -> str:
        """Say the tempo where the prompt does not, in its language, as captions that the bundled model learnt do."""
        if self.bpm is None or _TEMPO.search(prompt):
            return prompt
        if _CHINESE.search(prompt):
            return f"{prompt}，每分钟{self.bpm:g}拍"
        return ", ".join(part for part in (prompt, f"{self.bpm:g} bpm") if part)

    def lasting(self, own: float) -> float:
        """Return the seconds of one clip of a walk, or of the whole; `own` is what the model draws at once.

        With a tempo it is the whole number of bars nearest to that, one at least.
        """
        seconds = own if self.seconds is None else self.seconds
        if self.bar is None:
            return seconds
        return max(1, round(seconds / self.bar)) * self.bar

    @property
    def bar(self) -> float | None:
        """Return the seconds of a bar, or None where there is no tempo."""
        return None if self.bpm is None else self.beats * MINUTE / self.bpm

    def only(self, index: int) -> Self:
        """Return the request for clip `index` of the `count` alone."""
        moved = [stop if stop.seed is None else stop.replace(seed=stop.seed + index) for stop in self.to]
        return self.replace(seed=self.seed + index, count=1, to=tuple(moved))


class Film(Request):
    """Ask for the film to a clip: a keyframe on every downbeat, of which each has a seed of its own.

    The `prompts` are spread over the film's length; those of the music's way where there are none. `move` says how the
    pictures go from beat to beat: by the sound (energy, onsets), or by an easing, of which jump cuts.
    """

    kind: ClassVar[str] = "film"
    part: ClassVar[str] = "film "

    prompts: tuple[str, ...] = Field(
        default=(),
        description="what the film shows; may be given several times, one after the other; what the music is "
        "asked for if not given",
    )
    negative: str = Field(default="", description="what to keep away from")
    model: ModelName | None = Field(
        default=None, description="model of its pictures; the bundled one of pictures if not given"
    )
    sha256: str | None = Field(default=None, description="SHA-256 of that model, as recorded; other content is noted")
    seed: Seed | None = Field(default=None, description="of the first keyframe; the music's if not given")
    fps: float = Field(default=12.0, gt=0, le=240, description="frames a second")
    width: Pixels | None = Field(default=None, description="WIDTHxHEIGHT in pixels; the model's own if not given")
    height: Pixels | None = Field(default=None, description="pixels")
    steps: int = Field(default=12, ge=1, le=1000, description="denoising steps of a frame")
    move: Move = Field(
        default="energy", description="from beat to beat: energy, onsets, jump, ...; an unknown name lists them all"
    )
