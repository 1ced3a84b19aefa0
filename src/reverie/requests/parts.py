"""Parts of requests for pictures: variations, the second pass, the refiner, ControlNets, seen pictures, regions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from reverie.errors import ReverieError
from reverie.requests.adapter_files import SUFFIXES
from reverie.requests.base import Fraction, Frozen, Pixels, Seed, Strength, unknown
from reverie.requests.references import ControlNetName, ModelName, Picture, find_model, write_model

# What A1111 calls each (modules/shared_items.py, latent_upscale_modes).
UPSCALER_NAMES = {
    "latent": "Latent",
    "latent-antialiased": "Latent (antialiased)",
    "latent-bicubic": "Latent (bicubic)",
    "latent-bicubic-antialiased": "Latent (bicubic antialiased)",
    "latent-nearest": "Latent (nearest)",
    "latent-nearest-exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
}


def _find_upscaler(name: str) -> str:
    """Return one of UPSCALER_NAMES, or where the file of a learned upscaler is."""
    if name in UPSCALER_NAMES:
        return name
    if not name.endswith(SUFFIXES):
        raise ReverieError(f"{unknown('upscaler', name, list(UPSCALER_NAMES))}, or give the file of a learned one")
    return find_model(name, "upscaler")


UpscalerName = Annotated[str, AfterValidator(_find_upscaler), PlainSerializer(write_model)]
"""The name of what enlarges latents or pictures: one of UPSCALER_NAMES, or a file."""

Preprocessor = Literal["none", "canny", "lineart", "blurred", "scribble", "softedge"]


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

    `upscaler` "latent" enlarges the latents (bilinear, or as its name goes on), "lanczos" and the file of a learned
    upscaler the picture. `steps` are the request's where None.
    """

    part: ClassVar[str] = "hires "

    scale: float = Field(
        default=2.0, gt=1, le=8, description="enlarge and draw a second time: by a factor such as 2, or to WIDTHxHEIGHT"
    )
    width: Pixels | None = None
    height: Pixels | None = None
    upscaler: UpscalerName = Field(
        default="latent",
        description=f"what enlarges the latents, or the picture: {', '.join(UPSCALER_NAMES)}, or the file of a learned "
        "upscaler (ESRGAN, Real-ESRGAN, SwinIR, DAT)",
    )
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


def _check_way(what: str, start: float, end: float) -> None:
    """Raise ReverieError where what acts between two fractions of the way never does."""
    if start > end:
        raise ReverieError(f"{what} from {start:g} to {end:g} never acts; give start below end")


class ControlInput(Frozen):
    """Ask for a ControlNet or a T2I-Adapter (`model`: its folder or file) to lead by a picture.

    It acts between two fractions of the way, `start` and `end`.

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
        _check_way("a control", self.start, self.end)
        return self


class VariedPicture(Frozen):
    """Ask for a picture to be varied, alone or blended with others, of which it has a share of `weight` of all weights.

    A path or a picture stands for one of weight 1.
    """

    part: ClassVar[str] = "vary "

    image: Picture
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _of_picture(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping | VariedPicture) else {"image": given}


def _read_layers(given: object) -> object:
    """Read "3+6:0.5": numbers of layers, with their weights where these are not 1."""
    if not isinstance(given, str):
        return tuple(given.items()) if isinstance(given, Mapping) else given
    pairs = [part.partition(":") for part in given.split("+")]
    try:
        return tuple((int(number), float(weight) if colon else 1.0) for number, colon, weight in pairs)
    except ValueError:
        raise ReverieError(
            f"IP-Adapter layers '{given}' are not possible; write numbers such as 6 or 3+6:0.5"
        ) from None


class IPAdapterInput(Frozen):
    """Ask for pictures to be seen beside the prompt, by an IP-Adapter (`model`: its file) and a CLIP's vision tower.

    `encoder` is the tower's folder or file; None is the one beside the adapter's file. Several pictures are seen
    together. `layers` are those that act, each times its weight, counted on the way through the U-Net (SD 1.5 has 0 to
    15, SDXL 0 to 10, of which 6 carries the style and 3 the composition: 2404.02733); all where none are given.
    Where the mask is dark the pictures do not act.
    """

    part: ClassVar[str] = "IP-Adapter "

    model: ModelName
    images: Annotated[tuple[Picture, ...], Field(min_length=1)]
    encoder: ModelName | None = None
    weight: float = Field(default=1.0, ge=0)
    layers: Annotated[tuple[tuple[Annotated[int, Field(ge=0)], float], ...], BeforeValidator(_read_layers)] = ()
    start: Fraction = 0.0
    end: Fraction = 1.0
    mask: Picture | None = None

    if TYPE_CHECKING:

        def __init__(self, /, **fields: Any) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_way("an IP-Adapter", self.start, self.end)
        if len(dict(self.layers)) < len(self.layers):
            raise ReverieError("IP-Adapter layers name one twice; give each once, such as 3+6:0.5")
        return self


Box = tuple[Fraction, Fraction, Fraction, Fraction]
"""Left, top, right and bottom, as fractions of a picture's width and height."""
HALVES: dict[str, Box] = {
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
}
BOX_FORMS = f"{', '.join(HALVES)}, column1/3, row2/3, or LEFT,TOP,RIGHT,BOTTOM as fractions such as 0,0.2,0.5,1"
_STRIPE = re.compile(r"(column|row)(\d{1,3})/(\d{1,3})")


def read_box(given: object) -> object:
    """Read "left", "column1/3" or "0,0.2,0.5,1". Raises ReverieError for other texts."""
    if not isinstance(given, str):
        return given
    if given in HALVES:
        return HALVES[given]
    if stripe := _STRIPE.fullmatch(given):
        number, count = int(stripe[2]), int(stripe[3])
        if 1 <= number <= count:
            start, end = (number - 1) / count, number / count
            return (start, 0.0, end, 1.0) if stripe[1] == "column" else (0.0, start, 1.0, end)
    try:
        left, top, right, bottom = (float(part) for part in given.split(","))
    except ValueError:
        raise ReverieError(f"'{given}' is no part of a picture; write {BOX_FORMS}") from None
    return left, top, right, bottom


REGIONS = (
    "part of the picture and its own prompt, PLACE=PROMPT or PLACE:WEIGHT=PROMPT, which may end with @negative PROMPT; "
    "PLACE is left, right, top, bottom, column1/3, row2/3, LEFT,TOP,RIGHT,BOTTOM as fractions, or a mask; may be given "
    "several times"
)
"""What the fields of regions say of themselves."""


class Region(Frozen):
    """Ask for a part of the picture to follow a prompt of its own: a box, or where a mask is light.

    `box` is left, top, right and bottom as fractions, or a text of BOX_FORMS. `weight` says how far the prompt takes
    the place of the request's there, 1 wholly; where regions overlap, they share by their weights. `negative` keeps
    away there from something else than the request's does, which holds where it is None.
    """

    part: ClassVar[str] = "region "

    prompt: str
    negative: str | None = None
    box: Annotated[Box | None, BeforeValidator(read_box)] = None
    mask: Picture | None = None
    weight: float = Field(default=1.0, gt=0, le=10)

    if TYPE_CHECKING:

        def __init__(self, /, **fields: Any) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.box is None) == (self.mask is None):
            raise ReverieError("a region is a box or a mask; give one of them")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ReverieError(
                f"a region from {self.box[:2]} to {self.box[2:]} is empty; give left below right, and top below bottom"
            )
        return self

    def with_words(self, change: Callable[[str], str]) -> Self:
        """Return a region with its prompts changed."""
        return self.replace(
            prompt=change(self.prompt), negative=None if self.negative is None else change(self.negative)
        )
