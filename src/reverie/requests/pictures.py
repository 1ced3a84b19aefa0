"""Requests for pictures: from a prompt, over a picture, under a mask, beyond a picture's edges; and their parts.

The parts are variations, the second pass, the refiner, ControlNets and IP-Adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Unpack, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from reverie.errors import ReverieError
from reverie.requests.adapter_files import SUFFIXES
from reverie.requests.base import (
    MAX_SEED,
    Fraction,
    Frozen,
    Pixels,
    SampledRequest,
    Seed,
    Strength,
    check_strength,
    unknown,
)
from reverie.requests.references import ControlNetName, ModelName, Picture, find_model, write_model

if TYPE_CHECKING:
    from PIL import Image

    from reverie.requests.options import (
        ImageToImageOptions,
        InpaintOptions,
        OutpaintOptions,
        PictureLike,
        TextToImageOptions,
    )

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
        "upscaler (ESRGAN, Real-ESRGAN)",
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


Tile = Literal["none", "x", "y", "xy"]
Rng = Literal["cpu", "gpu", "cpu_then_gpu"]
Fill = Literal["original", "surroundings", "noise", "nothing"]
Size = tuple[Annotated[int, Field(ge=1, le=65536)], Annotated[int, Field(ge=1, le=65536)]]
Corner = tuple[Annotated[int, Field(ge=0, le=65536)], Annotated[int, Field(ge=0, le=65536)]]
Border = Annotated[int, Field(ge=0, le=8192, multiple_of=8)]


class TextToImage(SampledRequest):
    """Ask for `count` pictures of a prompt; picture k is the one that seed + k alone would give.

    `width` and `height` in pixels and `guidance` are the model's own where None; `seed` is drawn at random where None.
    Raises ReverieError, in one line, for any value out of range.
    """

    kind: ClassVar[str] = "text_to_image"

    prompt: str = Field(default="", description="what to draw; may be empty")
    width: Pixels | None = Field(
        default=None,
        description="WIDTHxHEIGHT in pixels, multiples of 8, or what the model asks; the model's own if not given",
    )
    height: Pixels | None = Field(default=None, description="pixels")
    count: int = Field(default=1, ge=1, le=10_000, description="how many pictures")
    template: str = Field(default="", description="what the prompt was drawn from; changes nothing")
    negative_template: str = Field(default="", description="what the negative prompt was drawn from; changes nothing")
    controls: tuple[ControlInput, ...] = Field(
        default=(),
        description="ControlNet or T2I-Adapter and its picture, "
        "model=FILE,image=FILE[,weight=1,start=0,end=1,preprocessor=canny,kind=depth]; may be given several times",
    )
    vary: tuple[VariedPicture, ...] = Field(
        default=(),
        description="picture to draw variations of, FILE or FILE:weight, for models that see one (unCLIP, image "
        "variations); may be given several times, and blends them",
    )
    noise_level: int | None = Field(
        default=None,
        ge=0,
        lt=1000,
        description="how far unCLIP is to go from the picture that it varies, 0 to 999, 0 if not given; how far the x4 "
        "upscaler is from the one that it enlarges, 0 to 350, 20 if not given",
    )
    ip_adapters: tuple[IPAdapterInput, ...] = Field(
        default=(),
        description="IP-Adapter and the pictures that it shows beside the prompt, model=FILE,image=FILE[,image=FILE,"
        "encoder=FOLDER,weight=1,layers=3+6:0.5,start=0,end=1,mask=FILE]; may be given several times",
    )
    depth: Picture | None = Field(
        default=None, description="depth map to draw by, bright where it is near, for SD 2 depth; says the size"
    )
    variation: Variation | None = Field(default=None, description="another picture near to the seed's")
    hires: Hires | None = Field(default=None, description="a second pass over the enlarged picture")
    refiner: Refiner | None = Field(default=None, description="the model that takes the last steps")
    rng: Rng = Field(
        default="cpu",
        description="generator of the noise: cpu (torch's), gpu (an NVIDIA GPU's), or cpu_then_gpu, as in ComfyUI",
    )
    zero_negative: bool | None = Field(
        default=None,
        description="put zeros for an empty negative prompt, not its encoding; the model's own way if not given",
    )
    tile: Tile = Field(
        default="none", description="x, y or xy: directions in which copies of the picture fit each other"
    )
    tile_size: Annotated[Pixels, Field(ge=64)] | None = Field(
        default=None,
        description="pixels, such as the model's own size: what is larger is denoised in tiles of that side, which lie "
        "half over one another and are averaged (MultiDiffusion, Bar-Tal et al. 2302.08113), in the memory of one",
    )
    original_size: Size | None = Field(
        default=None,
        description="SDXL: WIDTHxHEIGHT of the picture that this one is said to be cut from; its own if not given",
    )
    crop: Corner | None = Field(
        default=None, description="SDXL: LEFTxTOP that it is said to be cut at; 0x0 if not given"
    )
    target_size: Size | None = Field(
        default=None, description="SDXL: WIDTHxHEIGHT that it is said to have; its own if not given"
    )
    negative_original_size: Size | None = Field(
        default=None, description="SDXL: `original_size` of the negative prompt; as the prompt's if not given"
    )
    negative_crop: Corner | None = Field(
        default=None, description="SDXL: `crop` of the negative prompt; as the prompt's if not given"
    )
    negative_target_size: Size | None = Field(
        default=None, description="SDXL: `target_size` of the negative prompt; as the prompt's if not given"
    )

    if TYPE_CHECKING:

        def __init__(self, *, prompt: str = "", **options: Unpack[TextToImageOptions]) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Self:
        first = self.seed if self.variation is None else self.variation.seed
        if first + self.count - 1 > MAX_SEED:
            raise ReverieError(
                f"seed {first} with count {self.count} passes the largest seed, {MAX_SEED}; lower one of them"
            )
        if self.noise_level and not self.vary and not isinstance(self, ImageToImage):
            raise ReverieError(
                "`noise_level` is about a picture that is varied or enlarged; give one as `vary` or `init`",
                field="noise_level",
            )
        if self.tile_size is not None and (self.cache_steps > 1 or self.tile != "none"):
            other = "cache_steps" if self.cache_steps > 1 else "tile"
            raise ReverieError(f"`tile_size` does not go with `{other}`; leave out one of them", field="tile_size")
        if self.hires is not None:
            check_strength(self.hires.steps or self.steps, self.hires.strength)
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the prompt alone."""
        return (self.prompt,)

    def only(self, index: int) -> Self:
        """Return the request for picture `index` of the `count` alone."""
        if self.variation is None:
            return self.replace(seed=self.seed + index, count=1)
        return self.replace(variation=self.variation.replace(seed=self.variation.seed + index), count=1)


class ImageToImage(TextToImage):
    """Ask for a picture to be drawn anew: noised as far as `strength` says, and denoised towards the prompt.

    Of the `steps` the last int(steps * strength) are taken, as in diffusers; 1 forgets the picture. `width` and
    `height` are the picture's where None, rounded to whole latents; transparent parts are laid on white. A model that
    edits pictures sees it whatever the strength, 1 if left open, and `image_guidance` says how far to keep to it.
    """

    kind: ClassVar[str] = "image_to_image"

    init: Picture = Field(description="picture to draw anew; its transparent parts are painted and the rest stays")
    strength: Strength = Field(default=0.75, description="0 to 1, how far to go from the picture; 1 forgets it")
    image_guidance: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="how far a model that edits pictures (InstructPix2Pix) keeps to the picture; 1.5 if not given",
    )

    if TYPE_CHECKING:

        def __init__(self, *, prompt: str = "", init: PictureLike, **options: Unpack[ImageToImageOptions]) -> None: ...

    @model_validator(mode="after")
    def _check_strength(self) -> Self:
        check_strength(self.steps, self.strength)
        return self


class Inpaint(ImageToImage):
    """Ask for part of a picture to be painted anew: where `mask` is light, or where the picture is transparent.

    What lies outside the mask, blurred by `mask_blur` pixels, stays to the bit; without a mask all that is opaque.
    `only_masked` draws the surroundings of the mask, `padding` pixels around it, at the request's (or the model's own)
    size, and lays the result back. `fill` says what the drawing starts from within the mask.
    """

    kind: ClassVar[str] = "inpaint"

    mask: Picture | None = Field(
        default=None,
        description="white is painted, or what is opaque where some of the mask is transparent; if not given, what is "
        "transparent in the picture",
    )
    mask_blur: int = Field(
        default=4,
        ge=0,
        le=256,
        description="pixels by which the mask's edge is softened; without a mask alpha itself is the edge",
    )
    only_masked: bool = Field(default=False, description="draw the part around the mask alone, at full size")
    padding: int = Field(default=32, ge=0, le=4096, description="pixels around the mask that only_masked draws as well")
    fill: Fill = Field(default="original", description="what to start from within the mask")

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            prompt: str = "",
            init: PictureLike,
            mask: PictureLike | None = None,
            **options: Unpack[InpaintOptions],
        ) -> None: ...

    @model_validator(mode="after")
    def _check_mask(self) -> Self:
        if self.hires is not None:
            raise ReverieError("a second pass does not go with a mask; leave out one of hires and mask")
        if self.mask is None:
            if self.init.transparent is False:
                raise ReverieError("nothing says where to paint: give a mask, or a picture with transparent parts")
        elif self.init.size and self.mask.size and self.init.size != self.mask.size:
            sizes = [f"{width}x{height}" for width, height in (self.mask.size, self.init.size)]
            raise ReverieError(f"the mask has {sizes[0]} pixels and the picture {sizes[1]}; give them the same size")
        return self


class Outpaint(TextToImage):
    """Ask for a picture to be continued beyond its edges, by so many pixels (multiples of 8) on each side.

    The result has the picture's size and the borders; `fill` says what the drawing starts from there, and
    `mask_blur` softens the edge between old and new.
    """

    kind: ClassVar[str] = "outpaint"

    init: Picture = Field(description="the picture to continue")
    left: Border = Field(default=0, description="pixels")
    right: Border = Field(default=0, description="pixels")
    top: Border = Field(default=0, description="pixels")
    bottom: Border = Field(default=0, description="pixels")
    strength: Strength = Field(default=1.0, description="how far to go from the fill")
    mask_blur: int = Field(default=8, ge=0, le=256, description="pixels by which the edge is softened")
    fill: Fill = Field(default="surroundings", description="what to start from beyond the edges")

    if TYPE_CHECKING:

        def __init__(self, *, prompt: str = "", init: PictureLike, **options: Unpack[OutpaintOptions]) -> None: ...

    @model_validator(mode="after")
    def _check_borders(self) -> Self:
        check_strength(self.steps, self.strength)
        if not (self.left or self.right or self.top or self.bottom):
            raise ReverieError("outpainting by 0 pixels on every side; give left, right, top or bottom")
        if self.hires is not None:
            raise ReverieError("a second pass does not go with outpainting; leave out one of them")
        return self


class PictureMethods:
    """Ask for pictures by methods, as of a loaded model and of a server: `draw` carries a request out."""

    def text_to_image(
        self, prompt: str | Sequence[str] = "", **options: Unpack[TextToImageOptions]
    ) -> list[Image.Image]:
        """Draw pictures of a prompt, or of each of several in order; the options are the fields of `TextToImage`.

        With a seed, every prompt is drawn from that same seed. Every prompt is checked before any is drawn.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        requests = [TextToImage.of({"prompt": one, **options}) for one in prompts]
        return [picture for request in requests for picture in self.draw(request)]

    def image_to_image(
        self, prompt: str, init: PictureLike, **options: Unpack[ImageToImageOptions]
    ) -> list[Image.Image]:
        """Draw a picture anew; the options are the fields of `ImageToImage`."""
        return self.draw(ImageToImage.of({"prompt": prompt, "init": init, **options}))

    def inpaint(
        self, prompt: str, init: PictureLike, mask: PictureLike | None = None, **options: Unpack[InpaintOptions]
    ) -> list[Image.Image]:
        """Paint anew what a mask shows in white, or what is transparent; the options are the fields of `Inpaint`."""
        return self.draw(Inpaint.of({"prompt": prompt, "init": init, "mask": mask, **options}))

    def outpaint(self, prompt: str, init: PictureLike, **options: Unpack[OutpaintOptions]) -> list[Image.Image]:
        """Continue a picture beyond its edges; the options are the fields of `Outpaint`."""
        return self.draw(Outpaint.of({"prompt": prompt, "init": init, **options}))

    def draw(self, request: TextToImage) -> list[Image.Image]:
        """Draw the pictures that a request asks for, in order."""
        raise NotImplementedError
