"""What may be asked for beside a prompt? Variations, a second pass, a refiner and control pictures, each frozen."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reverie.errors import ReverieError
from reverie.requests.frozen import Frozen
from reverie.requests.references import Picture

# torch's generator on the CPU (mt19937) is seeded with the low 32 bits alone: larger seeds would repeat smaller ones.
MAX_SEED = 2**32 - 1

Pixels = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Fraction, Fraction]
Strength = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Upscaler = Literal["latent", "lanczos"]
Preprocessor = Literal["none", "canny", "lineart", "blurred"]


def steps_taken(steps: int, strength: float) -> int:
    """Return how many of `steps` remain at a strength: the last int(steps * strength) of the table, as in diffusers."""
    return min(int(steps * strength), steps)


def check_strength(steps: int, strength: float) -> None:
    """Raise ReverieError where a strength is so small that no step remains."""
    if steps_taken(steps, strength) == 0:
        raise ReverieError(f"strength {strength:g} of {steps} steps leaves none; give at least {1 / steps:.3g}")


def check_interval(start: float, end: float) -> None:
    """Raise ReverieError where an interval has no length."""
    if start >= end:
        raise ReverieError(f"guidance from {start:g} to {end:g} never acts; give the smaller first, as 0.2,0.8")


class Variation(Frozen):
    """Ask for another picture near to a seed's: its noise goes `strength` of the great circle to that of `seed`.

    Picture k of several keeps the request's seed and varies it with `seed` + k. `width` and `height` name the size that
    the noise is drawn at, and laid in the middle of the picture's: so a seed keeps its composition at another size.
    """

    part: ClassVar[str] = "variation "

    seed: Seed = 0
    strength: Fraction = 0.0
    width: Pixels | None = None
    height: Pixels | None = None


class Hires(Frozen):
    """Ask for a second pass over the picture enlarged: by `scale`, or to `width` and `height` where they are given.

    `upscaler` "latent" enlarges the latents (bilinear), "lanczos" the picture. `steps` are the request's where None.
    """

    part: ClassVar[str] = "hires "

    scale: float = Field(default=2.0, gt=1, le=8)
    width: Pixels | None = None
    height: Pixels | None = None
    upscaler: Upscaler = "latent"
    steps: int | None = Field(default=None, ge=1, le=1000)
    strength: Strength = 0.7

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ReverieError("a second pass takes both width and height, or neither and a scale")
        return self

    def size(self, width: int, height: int, multiple: int) -> tuple[int, int]:
        """Return the second pass's width and height, whole multiples of `multiple`, for the first's."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        return round(width * self.scale / multiple) * multiple, round(height * self.scale / multiple) * multiple


class Refiner(Frozen):
    """Ask for another model (a folder, a file or a name on the hub) to take the last steps.

    Those are the steps of the timesteps below 1 - `switch` of all, as diffusers' denoising_end and denoising_start say.
    """

    part: ClassVar[str] = "refiner "

    model: str = Field(min_length=1)
    switch: Strength = 0.8


class ControlInput(Frozen):
    """Ask for a ControlNet (`model`: its folder or file) to lead by a picture, between two fractions of the way."""

    part: ClassVar[str] = "control "

    model: str = Field(min_length=1)
    image: Picture
    weight: float = Field(default=1.0, ge=0, le=2)
    start: Fraction = 0.0
    end: Fraction = 1.0
    preprocessor: Preprocessor = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start > self.end:
            raise ReverieError(f"a control from {self.start:g} to {self.end:g} never acts; give start below end")
        return self
