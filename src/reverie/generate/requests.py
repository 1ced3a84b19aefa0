"""What can be asked for? A frozen request: flags, HTTP body and metadata in one object."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from reverie.errors import ReverieError

SamplerName = Literal[
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
    "lcm",
]
ScheduleName = Literal[
    "normal", "karras", "exponential", "sgm_uniform", "linspace", "leading", "trailing", "ddim", "lcm"
]
# Kept here rather than read from diffusion's tables, so that `reverie --help` needs no torch; a test compares them.
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)

# torch's generator on the CPU (mt19937) is seeded with the low 32 bits alone: larger seeds would repeat smaller ones.
MAX_SEED = 2**32 - 1


def random_seed() -> int:
    """Draw a seed from the system's entropy."""
    return secrets.randbelow(MAX_SEED + 1)


def _seed_or_random(seed: object) -> object:
    return random_seed() if seed is None else seed


class TextToImage(BaseModel):
    """Ask for `count` pictures of a prompt; picture k is the one that seed + k alone would give.

    `width` and `height` in pixels are the model's own size where None; `seed` is drawn at random where None.
    Raises ReverieError, in one line, for any value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: str = Field("", description="what to draw; may be empty")
    negative: str = Field("", description="what to keep away from")
    seed: Annotated[int, BeforeValidator(_seed_or_random)] = Field(
        default_factory=random_seed, ge=0, le=MAX_SEED, description="picture k uses seed + k; random if not given"
    )
    steps: int = Field(20, ge=1, le=1000, description="denoising steps")
    guidance: float = Field(5.0, ge=0, le=100, description="classifier-free guidance; 1 switches it off")
    width: int | None = Field(None, ge=8, le=8192, multiple_of=8, description="pixels; the model's own if not given")
    height: int | None = Field(None, ge=8, le=8192, multiple_of=8, description="pixels; the model's own if not given")
    count: int = Field(1, ge=1, le=10_000, description="how many pictures")
    sampler: SamplerName = Field("dpmpp_2m", description="how the noise is taken away")
    schedule: ScheduleName = Field("karras", description="how the noise levels are spaced")
    guidance_rescale: float = Field(0.0, ge=0, le=1, description="against overexposure (Lin et al. 2023, eq. 15-16)")
    threshold: float | None = Field(None, gt=0, le=1, description="dynamic thresholding's percentile, such as 0.995")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ReverieError(one_line(error, type(self))) from None
        if self.seed + self.count - 1 > MAX_SEED:
            raise ReverieError(
                f"seed {self.seed} with count {self.count} passes the largest seed, {MAX_SEED}; lower one of them"
            )

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed, checked again."""
        return type(self)(**{**self.model_dump(), **changes})

    def only(self, index: int) -> Self:
        """Return the request for picture `index` of the `count` alone."""
        return self.replace(seed=self.seed + index, count=1)

    def to_json(self) -> str:
        """Write the request as one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a request written by `to_json`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ReverieError(f"request is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ReverieError(f"request must be a JSON object, not {type(data).__name__}")
        return cls(**data)


def one_line(error: ValidationError, request: type[BaseModel]) -> str:
    """Say the first of pydantic's complaints in one line: what was given, what is allowed, and how many more."""
    first, *others = error.errors()
    more = f" (and {len(others)} more)" if others else ""
    return _complaint(first, request) + more


def _complaint(error: ErrorDetails, request: type[BaseModel]) -> str:
    name, given = str(error["loc"][0]), error["input"]
    if error["type"] == "extra_forbidden":
        return _unknown("option", name, list(request.model_fields))
    if error["type"] == "literal_error":
        return _unknown(name, given, get_args(request.model_fields[name].annotation))
    message = error["msg"].removeprefix("Input ").removeprefix("should ")
    return f"{name} {given!r} is not possible; it should {message}"


def _unknown(what: str, given: object, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(given), allowed, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {what} {given!r}; {hint}choose from {', '.join(allowed)}"
