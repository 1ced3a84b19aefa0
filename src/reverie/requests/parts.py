"""Parts of a request for pictures: variations, the second pass, the refiner and ControlNets."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from reverie.errors import ReverieError
from reverie.requests.base import Fraction, Frozen, Pixels, Seed, Strength
from reverie.requests.references import Picture

Upscaler = Literal["latent", "lanczos"]
Preprocessor = Literal["none", "canny", "lineart", "blurred"]


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


ControlKind = Literal["openpose", "depth", "softedge", "canny", "normal", "segment", "tile", "repaint"]
CONTROL_KINDS: tuple[str, ...] = get_args(ControlKind)
"""What a union ControlNet calls kinds of pictures, in the order of its weights; the first one knows six of them."""


class ControlInput(Frozen):
    """Ask for a ControlNet (`model`: its folder or file) to lead by a picture, between two fractions of the way.

    `kind` says what the picture is of to a union ControlNet, which knows several.
    """

    part: ClassVar[str] = "control "

    model: str = Field(min_length=1)
    image: Picture
    weight: float = Field(default=1.0, ge=0)
    start: Fraction = 0.0
    end: Fraction = 1.0
    preprocessor: Preprocessor = "none"
    kind: ControlKind | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start > self.end:
            raise ReverieError(f"a control from {self.start:g} to {self.end:g} never acts; give start below end")
        return self
