"""How do flags become a request? Groups of options beside the prompt, and the one request that they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from reverie.cli.options import Flag, Whole, parse_size
from reverie.errors import ReverieError
from reverie.requests.parts import ControlInput, Hires, Refiner, Variation
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage

Fields = dict[str, Any]
Several = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]

DEFAULT = TextToImage(seed=0)
MASKING = ("mask", "mask_blur", "only_masked", "padding", "fill")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BasicOptions:
    """Choose what most drawings choose."""

    negative: str = DEFAULT.negative
    """What to keep away from."""
    seed: Whole | None = None
    """Picture k is drawn from seed + k; random if not given."""
    steps: Whole = DEFAULT.steps
    """Denoising steps."""
    guidance: float | None = DEFAULT.guidance
    """How strictly to follow the prompt; 1 switches guidance off; the model's own if not given."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of 8, or what the model asks; the model's own if not given."""
    count: Whole = DEFAULT.count
    """How many pictures."""
    sampler: str = DEFAULT.sampler
    """How the noise is taken away: dpmpp_2m, euler, heun, ...; an unknown name lists them all."""
    schedule: str = DEFAULT.schedule
    """How the noise levels are spaced: karras, exponential, ...; an unknown name lists them all."""
    guidance_rescale: float = DEFAULT.guidance_rescale
    """0 to 1, against overexposure at high guidance."""
    guidance_interval: str | None = None
    """START,END: fractions of the way between which guidance acts, such as 0.2,0.8; the whole if not given."""
    cache_steps: Whole = DEFAULT.cache_steps
    """Compute the U-Net's inner levels once for so many steps: quicker, and a little another picture."""
    merge_tokens: float = DEFAULT.merge_tokens
    """0 to 0.75, share of the tokens that self-attention merges: quicker at large sizes, a little another picture."""
    threshold: float | None = DEFAULT.threshold
    """Percentile of dynamic thresholding, such as 0.995; none if not given."""

    def fields(self) -> Fields:
        """Return the requests' fields."""
        fields = dict(vars(self))
        width, height = (None, None) if fields.pop("size") is None else parse_size(str(self.size))
        if fields.pop("guidance_interval") is not None:
            fields["guidance_interval"] = parse_interval(str(self.guidance_interval))
        return fields | {"width": width, "height": height}


@Parameter(name="*", group="Start from a picture")
@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Choose the picture that a drawing starts from."""

    init: Path | None = None
    """Picture to draw anew; its transparent parts are painted and the rest stays."""
    strength: float | None = None
    """0 to 1, how far to go from the picture: 0.75 if not given, 1 beyond its edges."""
    mask: Path | None = None
    """Picture that is white where --init is to be painted; the rest stays."""
    mask_blur: Whole | None = None
    """Pixels by which the mask's edge is softened: 4 if not given, 8 beyond the picture's edges."""
    only_masked: Flag = False
    """Draw the part around the mask alone, at full size."""
    padding: Whole | None = None
    """Pixels around the mask that --only-masked draws as well; 32 if not given."""
    fill: str | None = None
    """What to start from within the mask: original, surroundings, noise or nothing."""
    outpaint: str | None = None
    """Continue the picture beyond its edges by so many pixels: 64, or left=64,bottom=32."""

    def fields(self) -> Fields:
        """Return what was given, by the names of the requests' fields."""
        given = {name: value for name, value in vars(self).items() if value is not None and value is not False}
        borders = given.pop("outpaint", None)
        if given.keys() - {"init"} and self.init is None:
            flag = sorted(given)[0].replace("_", "-")
            raise ReverieError(f"--{flag} is about a picture to start from; give one with --init")
        if borders is not None and self.init is None:
            raise ReverieError("--outpaint is about a picture to start from; give one with --init")
        return given | (parse_borders(borders) if borders is not None else {})


@Parameter(name="*", group="Adapt the model")
@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Choose what is added to the model and to its prompt."""

    lora: Several = ()
    """File of a LoRA, or FILE:weight; may be given several times."""
    embedding: Several = ()
    """Textual inversion, named in the prompt by its file's name, or a folder of them; may be given several times."""
    lora_dir: Several = ()
    """Folder where LoRAs and embeddings are looked for by name, before REVERIE_LORA_DIR; several times."""
    control: Several = ()
    """ControlNet and its picture, model=FILE,image=FILE[,weight=1,start=0,end=1,preprocessor=canny]; several times.
    A union ControlNet is told of what kind the picture is, kind=depth."""
    clip_skip: Whole = 1
    """2 reads the last but one layer of the text encoder, and so on."""

    def fields(self) -> Fields:
        """Return the requests' fields."""
        controls = [ControlInput.of(parse_fields(text, "control")) for text in self.control]
        return {
            "loras": self.lora,
            "embeddings": self.embedding,
            "folders": self.lora_dir,
            "controls": tuple(controls),
            "clip_skip": self.clip_skip,
        }


@Parameter(name="*", group="Go further")
@dataclass(frozen=True, kw_only=True)
class FurtherOptions:
    """Choose variations, a second pass, a refiner and seamless edges."""

    subseed: Whole | None = None
    """Seed of a variation: the noise goes towards this seed's."""
    subseed_strength: float | None = None
    """0 to 1, how far it goes."""
    seed_size: str | None = None
    """WIDTHxHEIGHT that the seed's noise is drawn at, to keep a composition at another size."""
    hires: str | None = None
    """Enlarge and draw a second time: by a factor such as 2, or to WIDTHxHEIGHT."""
    hires_upscaler: str | None = None
    """latent or lanczos; latent if not given."""
    hires_steps: Whole | None = None
    """Steps of the second pass; those of the first if not given."""
    hires_strength: float | None = None
    """0 to 1, how far the second pass goes from the first; 0.7 if not given."""
    refiner: str | None = None
    """Model that takes the last steps: folder, file or name on the hub."""
    refiner_switch: float | None = None
    """Fraction of the way after which it does; 0.8 if not given."""
    tile: str = "none"
    """x, y or xy: directions in which copies of the picture fit each other."""
    original_size: str | None = None
    """SDXL: WIDTHxHEIGHT of the picture that this one is said to be cut from."""
    crop: str | None = None
    """SDXL: LEFTxTOP that it is said to be cut at."""
    target_size: str | None = None
    """SDXL: WIDTHxHEIGHT that it is said to have."""
    negative_original_size: str | None = None
    """SDXL: the same for what to keep away from."""
    negative_crop: str | None = None
    """SDXL: the same for what to keep away from."""
    negative_target_size: str | None = None
    """SDXL: the same for what to keep away from."""

    def fields(self) -> Fields:
        """Return the requests' fields."""
        sizes = {name: parse_size(text) for name, text in vars(self).items() if name in SIZES and text is not None}
        parts = {"variation": self._variation(), "hires": self._hires(), "refiner": self._refiner()}
        return {"tile": self.tile, **sizes, **parts}

    def _variation(self) -> Variation | None:
        width, height = parse_size(self.seed_size) if self.seed_size is not None else (None, None)
        fields = _given(seed=self.subseed, strength=self.subseed_strength, width=width, height=height)
        return Variation(**fields) if fields else None

    def _hires(self) -> Hires | None:
        fields = _given(upscaler=self.hires_upscaler, steps=self.hires_steps, strength=self.hires_strength)
        if self.hires is None:
            if fields:
                raise ReverieError(f"--hires-{min(fields)} is about a second pass; ask for one with --hires 2")
            return None
        if re.fullmatch(r"\d+(\.\d*)?", self.hires):
            return Hires(scale=float(self.hires), **fields)
        width, height = parse_size(self.hires)
        return Hires(width=width, height=height, **fields)

    def _refiner(self) -> Refiner | None:
        fields = _given(switch=self.refiner_switch)
        if self.refiner is not None:
            return Refiner(model=self.refiner, **fields)
        if fields:
            raise ReverieError("--refiner-switch is about a refiner; give one with --refiner")
        return None


SIZES = {name for name in FurtherOptions.__dataclass_fields__ if name.endswith(("_size", "crop"))} - {"seed_size"}


def _given(**fields: object) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def ask(basics: Fields, init: InitOptions, adapters: AdapterOptions, further: FurtherOptions) -> TextToImage:
    """Make the request that the options mean. Raises ReverieError for values out of range and for what does not fit."""
    shared, picture = {**basics, **adapters.fields(), **further.fields()}, init.fields()
    if init.outpaint is not None:
        return Outpaint(**shared, **picture)
    if picture.keys() & set(MASKING):
        return Inpaint(**shared, **picture)
    if init.init is None:
        return TextToImage(**shared)
    request = ImageToImage(**shared, **picture)
    return Inpaint(**shared, **picture) if request.init.transparent else request


def parse_borders(text: str) -> dict[str, int]:
    """Read pixels for all sides, or left=64,bottom=32. Raises ReverieError for anything else."""
    if text.isdecimal():
        return dict.fromkeys(("left", "right", "top", "bottom"), int(text))
    if "=" not in text:
        raise ReverieError(f"--outpaint '{text}' is not possible; write 64, or left=64,right=64,top=32,bottom=32")
    borders = parse_fields(text, "outpaint")
    for side, pixels in borders.items():
        if side not in ("left", "right", "top", "bottom") or not pixels.isdecimal():
            raise ReverieError(f"'{side}={pixels}' is no border; write 64, or left=64,right=64,top=32,bottom=32")
    return {side: int(pixels) for side, pixels in borders.items()}


def parse_interval(text: str) -> tuple[float, float]:
    """Read START,END. Raises ReverieError for anything else."""
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise ReverieError(f"--guidance-interval '{text}' is not possible; write START,END such as 0.2,0.8") from None
    return start, end


def parse_fields(text: str, flag: str) -> dict[str, str]:
    """Read name=value,name=value. Raises ReverieError where a part has no name."""
    parts: Sequence[tuple[str, str, str]] = [part.partition("=") for part in text.split(",")]
    if not all(name and equals for name, equals, _ in parts):
        raise ReverieError(f"--{flag} '{text}' is not possible; write name=value,name=value")
    return {name.strip(): value for name, _, value in parts}
