"""Parts of a request for pictures: variations, the second pass, the refiner and ControlNets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from reverie.errors import ReverieError
from reverie.requests.base import Fraction, Frozen, Pixels, Seed, Strength
from reverie.requests.references import ControlNetName, ModelName, Picture

Upscaler = Literal["latent", "lanczos"]
Preprocessor = Literal["none", "canny", "lineart", "blurred"]


class Variation(Frozen):
    """Ask for another picture near to a seed's: its noise goes `strength` of the great circle to that of `seed`.

    Picture k of several keeps the request's seed and varies it with `seed` + k. `width` and `height` name the size that
    the noise is drawn at, and laid in the middle of the picture's: so a seed keeps its composition at another size.
    """

    part: ClassVar[str] = "variation "

    seed: Seed = Field(default=0, description="seed of a variation: the noise goes towards this seed's")
    strength: Fraction = Field(default=0.0, description="0 to 1, how far it goes")
    width: Pixels | None = Field(
        default=None,
        description="WIDTHxHEIGHT that the seed's noise is drawn at, to keep a composition at another size",
    )
    height: Pixels | None = None


class Hires(Frozen):
    """Ask for a second pass over the picture enlarged: by `scale`, or to `width` and `height` where they are given.

    `upscaler` "latent" enlarges the latents (bilinear), "lanczos" the picture. `steps` are the request's where None.
    """

    part: ClassVar[str] = "hires "

    scale: float = Field(
        default=2.0, gt=1, le=8, description="enlarge and draw a second time: by a factor such as 2, or to WIDTHxHEIGHT"
    )
    width: Pixels | None = None
    height: Pixels | None = None
    upscaler: Upscaler = Field(default="latent", description="what enlarges: latent or lanczos")
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="steps of the second pass; those of the first if not given"
    )
    strength: Strength = Field(default=0.7, description="0 to 1, how far the second pass goes from the first")

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

    model: ModelName = Field(description="model that takes the last steps: folder, file or name on the hub")
    switch: Strength = Field(default=0.8, description="fraction of the way after which it does")


ControlKind = Literal["openpose", "depth", "softedge", "canny", "normal", "segment", "tile", "repaint"]
CONTROL_KINDS: tuple[str, ...] = get_args(ControlKind)
"""What a union ControlNet calls kinds of pictures, in the order of its weights; the first one knows six of them."""


class ControlInput(Frozen):
    """Ask for a ControlNet (`model`: its folder or file) to lead by a picture, between two fractions of the way.

    `kind` says what the picture is of to a union ControlNet, which knows several.
    """

    part: ClassVar[str] = "control "

    model: ControlNetName
    image: Picture
    weight: float = Field(default=1.0, ge=0)
    start: Fraction = 0.0
    end: Fraction = 1.0
    preprocessor: Preprocessor = "none"
    kind: ControlKind | None = None

    if TYPE_CHECKING:

        def __init__(self, /, **fields: Any) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start > self.end:
            raise ReverieError(f"a control from {self.start:g} to {self.end:g} never acts; give start below end")
        return self
