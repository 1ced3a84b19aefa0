"""Requests for pictures: from a prompt, over a picture, under a mask, beyond a picture's edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, Unpack

from pydantic import Field, model_validator

from reverie.errors import ReverieError
from reverie.requests.base import MAX_SEED, Pixels, SampledRequest, Strength, check_strength
from reverie.requests.parts import (
    REGIONS,
    ControlInput,
    Hires,
    IPAdapterInput,
    Refiner,
    Region,
    Variation,
    VariedPicture,
)
from reverie.requests.references import Picture

if TYPE_CHECKING:
    from PIL import Image

    from reverie.requests.options import (
        ImageToImageOptions,
        InpaintOptions,
        OutpaintOptions,
        PictureLike,
        TextToImageOptions,
    )

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
        description="picture to draw variations of, FILE or FILE:weight, for models that see one (the bundled one, "
        "unCLIP, image variations); may be given several times, and blends them",
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
    regions: tuple[Region, ...] = Field(default=(), description=REGIONS)
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
    tile_size: Pixels | None = Field(
        default=None,
        ge=64,
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
        """Return the prompt, and those of regions."""
        return (self.prompt, *(region.prompt for region in self.regions))

    @property
    def negatives(self) -> tuple[str, ...]:
        """Return the negative prompt, and those of regions."""
        return (self.negative, *(region.negative or "" for region in self.regions))

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
        if self.regions and self.only_masked:
            raise ReverieError(
                "regions are parts of the whole picture, of which only_masked draws one; leave out one of them"
            )
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
