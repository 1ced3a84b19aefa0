"""What txt2img and img2img of AUTOMATIC1111's API take, as a request in the making.

Fields mean what they mean in its web UI 1.10; what a request leaves open is the model's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reverie.errors import ReverieError
from reverie.files import name_of
from reverie.media.masks import from_picture
from reverie.media.pictures import decode, encode
from reverie.requests.base import random_seed
from reverie.requests.foreign.a1111 import read_clip_skip, read_hires, read_sampler
from reverie.requests.foreign.draft import OFF, Draft, shorten
from reverie.requests.parts import Hires
from reverie.requests.pictures import ImageToImage, Inpaint
from reverie.requests.references import DATA_URL, content_of, data_url
from reverie.requests.samplers import RECORDS, SPACINGS, find_sampler, find_schedule, schedule_label

Json = dict[str, Any]

AUTOMATIC = "Automatic"
# Fields of the same meaning, ours by theirs.
SAME = {"prompt": "prompt", "negative_prompt": "negative", "seed": "seed", "steps": "steps", "cfg_scale": "guidance"}
SAME |= {"width": "width", "height": "height"}
SAME_MASKED = {"inpaint_full_res": "only_masked", "inpaint_full_res_padding": "padding"}
FILLS = ("surroundings", "original", "noise", "nothing")  # by inpainting_fill
# ControlNet's preprocessors.
MODULES = {"none": "none", "None": "none", "canny": "canny", "blur_gaussian": "blurred", "scribble_xdog": "scribble"}
MODULES |= {"lineart_standard": "lineart", "lineart_standard (from white bg & black line)": "lineart"}

# Fields that are not named below: values that change nothing, and fields that change nothing whatever they hold.
NEUTRAL: Json = {"initial_noise_multiplier": 1, "inpainting_mask_weight": 1, "mask_round": True}
NEUTRAL |= {"image_cfg_scale": 1.5}  # what a model that edits pictures takes by itself, and others do not look at
NEUTRAL |= {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}
NEUTRAL |= {"hr_checkpoint_name": "Use same checkpoint", "hr_additional_modules": ["Use same choices"]}
INERT = {"url", "auth", "force_task_id", "do_not_save_samples", "do_not_save_grid", "script_args"}
NEUTRAL_UNIT: Json = {"control_mode": "Balanced", "hr_option": "Both", "resize_mode": "Just Resize"}
NEUTRAL_UNIT |= dict.fromkeys(("threshold_a", "threshold_b", "processor_res"), -1)
INERT_UNIT = {"low_vram", "pixel_perfect", "save_detected_map"}
CONTROLNET, DYNAMIC = SCRIPTS = ("controlnet", "dynamic prompts")  # what their names begin with
# What adieyal/sd-dynamic-prompts 2.6.3 does besides templates, by the place of its switch.
OF_DYNAMIC = {1: "combinatorial generation", 3: "magic prompt", 4: "I'm feeling lucky", 5: "attention grabber"}
OF_DYNAMIC |= {10: "a fixed seed", 11: "a prompt of another seed", 13: "Jinja2", 14: "no picture"}
OF_MODULES = {"threshold_a", "threshold_b", "processor_res"}  # change nothing without a preprocessor


def _allow_null(schema: Json) -> None:
    for name in schema["properties"].keys() - schema.get("required", ()):
        schema["properties"][name] = {"anyOf": [schema["properties"][name], {"type": "null"}]}


class Lenient(BaseModel):
    """Fields of which null means not given, and others beside them."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_allow_null)

    @model_validator(mode="before")
    @classmethod
    def _drop_nothing(cls, given: Any) -> Any:
        return {name: one for name, one in given.items() if one is not None} if isinstance(given, dict) else given

    def notes(self, neutral: Mapping[str, Any], inert: Collection[str] = (), prefix: str = "") -> dict[str, str]:
        """Return a line for each other field that would change something, by its name."""
        found = {name: one for name, one in (self.model_extra or {}).items() if name not in inert}
        changing = [name for name, one in found.items() if one not in (*OFF, neutral.get(name))]
        return {name: f"{prefix}{name}: {shorten(found[name])} is not honoured here" for name in changing}


class WebOptions(Lenient):
    """The web UI's options that are known here."""

    sd_model_checkpoint: str = ""
    sd_vae: Literal["Automatic", "None", ""] = "Automatic"
    CLIP_stop_at_last_layers: int = Field(default=1, ge=1, le=12)
    randn_source: Literal["CPU", "GPU", "NV"] = "CPU"
    samples_format: Literal["png", "jpg", "jpeg", "webp"] = "png"

    def over(self, others: WebOptions) -> WebOptions:
        """Return other options with what is given of these in their place."""
        return others.model_copy(update=self.model_dump(include=set(WebOptions.model_fields), exclude_unset=True))


class ControlUnit(Lenient):
    """A ControlNet."""

    enabled: bool = True
    image: str = ""
    model: str = "None"
    module: str = "none"
    weight: float = 1.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0


class Drawing(Lenient):
    """What txt2img and img2img take."""

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] = []
    seed: int = -1
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    sampler_name: str = ""
    sampler_index: str = ""
    scheduler: str = AUTOMATIC
    clip_skip: int | None = None
    tiling: bool = False
    subseed: int = -1
    subseed_strength: float = 0.0
    seed_resize_from_w: int = 0
    seed_resize_from_h: int = 0
    eta: float | None = None
    s_noise: float | None = None
    denoising_strength: float = 0.75
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    refiner_checkpoint: str = "None"
    refiner_switch_at: float = 0.8
    override_settings: WebOptions = WebOptions()
    override_settings_restore_afterwards: bool = True
    script_name: str = "None"
    alwayson_scripts: dict[str, dict[str, Any]] = {}
    send_images: bool = True
    save_images: bool = True
    include_init_images: bool = False

    def scripts(self) -> dict[str, list[Any]]:
        """Return the arguments of the scripts that act, by name. Raises ReverieError for those that are not here."""
        given = {name: one.get("args") or [] for name, one in self.alwayson_scripts.items()}
        given |= {self.script_name: [self.script_name not in OFF]}
        found: dict[str, list[Any]] = {}
        for name, args in given.items():
            if isinstance(args, list) and (not any(args) or args[0] is False):  # the first says whether it acts
                continue
            script = next((one for one in SCRIPTS if name.lower().startswith(one)), None)
            if script is None or not isinstance(args, list):
                raise ReverieError(f"there is no script '{name}' here", field="alwayson_scripts")
            found[script] = args
        return found

    def units(self) -> list[ControlUnit]:
        """Return the ControlNets."""
        try:
            units = TypeAdapter(list[ControlUnit]).validate_python(self.scripts().get(CONTROLNET, []))
        except ValidationError as error:
            message = f"ControlNet: {error.errors()[0]['msg']}"
            raise ReverieError(message, field="alwayson_scripts") from None
        return [unit for unit in units if unit.enabled]

    def dynamic(self) -> bool:
        """Tell whether the prompts are templates. Raises ReverieError for what that extension does beside."""
        args = self.scripts().get(DYNAMIC, [])
        if asked := [name for place, name in OF_DYNAMIC.items() if len(args) > place and args[place]]:
            raise ReverieError(f"{asked[0]} of dynamic prompts is not here; switch it off", field="alwayson_scripts")
        return bool(args)

    def remarks(self) -> list[str]:
        """Return a line for each field that would change something and is not known."""
        neutral = NEUTRAL | {"hr_prompt": self.prompt, "hr_negative_prompt": self.negative_prompt}
        hires = {name for name in self.model_extra or () if name.startswith("hr_")} if not self.enable_hr else set()
        options = self.override_settings.notes({}, prefix="override_settings.")
        return [*self.notes(neutral, INERT | hires).values(), *options.values()]


class Redrawing(Drawing):
    """What img2img takes."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str = ""
    resize_mode: Literal[0, 1, 2] = 0
    mask_blur: int | None = None
    mask_blur_x: int = 4
    mask_blur_y: int = 4
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: bool = False

    def blur(self) -> int:
        """Return how far the mask is blurred. Raises ReverieError where that is not the same both ways."""
        if self.mask_blur is None and self.mask_blur_x != self.mask_blur_y:
            raise ReverieError("masks are blurred the same both ways here; give `mask_blur`", field="mask_blur_y")
        return self.mask_blur_x if self.mask_blur is None else self.mask_blur


def draft_of(asked: Drawing, options: WebOptions) -> Draft:
    """Return the draft of what is asked for, without styles and embeddings, its pictures as data URLs.

    Files of upscalers are looked for where `looking_in` says. Raises ReverieError for what cannot be.
    """
    draft = Draft()
    draft.fields = {ours: one for theirs, ours in SAME.items() if (one := getattr(asked, theirs)) not in (None, "")}
    draft.fields |= {"count": asked.batch_size, "tile": "xy" if asked.tiling else "none"}
    draft.fields["rng"] = "cpu" if options.randn_source == "CPU" else "gpu"
    draft.given["Clip skip"] = asked.clip_skip or options.CLIP_stop_at_last_layers
    read_clip_skip(draft)
    _choose_sampler(draft, asked)
    _ask_for_parts(draft, asked)
    if isinstance(asked, Redrawing):
        draft.kind = Inpaint if asked.mask else ImageToImage
        draft.fields |= {"strength": asked.denoising_strength, **_given_pictures(asked)}
    draft.fields["controls"] = [_control(unit, draft) for unit in asked.units()]
    return draft


def _choose_sampler(draft: Draft, asked: Drawing) -> None:
    """Set sampler and spacing as the web UI chooses them. Raises ReverieError for names that nobody has."""
    label = asked.sampler_name or asked.sampler_index
    if not label:
        return
    if (found := find_sampler(label)) is None:
        known = ", ".join(one.label for one in RECORDS.values())
        raise ReverieError(f"unknown sampler '{label}'; choose from {known}", field="sampler_name")
    spacing = AUTOMATIC if asked.scheduler.lower() == AUTOMATIC.lower() else asked.scheduler
    if spacing != AUTOMATIC and find_schedule(spacing) is None:
        known = ", ".join(map(schedule_label, SPACINGS))
        raise ReverieError(f"unknown scheduler '{spacing}'; choose from {AUTOMATIC}, {known}", field="scheduler")
    draft.given |= {"Sampler": label, "Schedule type": found.schedule or spacing}
    read_sampler(draft)
    if RECORDS[found.sampler].eta is not None:
        draft.eta(asked.eta)
    if RECORDS[found.sampler].noise != "none" and asked.s_noise not in (None, 1):
        draft.note(f"s_noise: {asked.s_noise:g} is not honoured here; 1 takes its place")


def _ask_for_parts(draft: Draft, asked: Drawing) -> None:
    """Set variation, second pass and refiner. Raises ReverieError for a second pass that cannot be."""
    if asked.enable_hr:
        size = f"{asked.hr_resize_x}x{asked.hr_resize_y}"
        draft.given |= {"Hires upscale": asked.hr_scale, "Hires resize": size, "Hires upscaler": asked.hr_upscaler}
        draft.given |= {"Hires steps": asked.hr_second_pass_steps, "Hires denoising strength": asked.denoising_strength}
        read_hires(draft)
        if "hires" not in draft.fields:
            raise ReverieError(draft.notes[-1].removesuffix("; it is left out"), field="enable_hr")
        hires: Hires = draft.fields["hires"]
        draft.fields["hires"] = hires.replace(upscaler=name_of(hires.upscaler))  # which the server finds again
    width, height = asked.seed_resize_from_w, asked.seed_resize_from_h
    if asked.subseed_strength or (width > 0 and height > 0):
        seed = random_seed() if asked.subseed < 0 else asked.subseed
        variation: Json = {"seed": seed, "strength": asked.subseed_strength}
        draft.fields["variation"] = variation | ({"width": width, "height": height} if width > 0 < height else {})
    if asked.refiner_checkpoint not in OFF:
        draft.fields["refiner"] = {"model": asked.refiner_checkpoint, "switch": asked.refiner_switch_at}


def _given_pictures(asked: Redrawing) -> Json:
    """Return the fields of the picture and its mask, brought to the asked shape as `resize_mode` says."""
    init = url_of(asked.init_images[0])
    size = (asked.width, asked.height) if asked.resize_mode and asked.width and asked.height else None
    if size is None and not asked.mask:
        return {"init": init}
    picture = decode(content_of(init))
    fit = _contain if asked.resize_mode == 2 else ImageOps.fit
    fields = {"init": init if size is None else _encode(fit(picture, size))}
    if not asked.mask:
        return fields
    mask = from_picture(decode(content_of(url_of(asked.mask)))).resize(picture.size)
    mask = mask if size is None else fit(mask, size)
    fields["mask"] = _encode(ImageOps.invert(mask) if asked.inpainting_mask_invert else mask)
    own = {ours: getattr(asked, theirs) for theirs, ours in SAME_MASKED.items()}
    return fields | own | {"mask_blur": asked.blur(), "fill": FILLS[asked.inpainting_fill]}


def _contain(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture to within a size, and fill what is beside it by the pixels of its edges ("resize and fill")."""
    inner = ImageOps.contain(picture, size)
    left, top = ((whole - part) // 2 for whole, part in zip(size, inner.size, strict=True))
    sides = ((top, size[1] - inner.height - top), (left, size[0] - inner.width - left))
    pixels = np.asarray(inner)
    return Image.fromarray(np.pad(pixels, (*sides, *[(0, 0)] * (pixels.ndim - 2)), mode="edge"))


def _control(unit: ControlUnit, draft: Draft) -> Json:
    """Return a ControlNet of the request; without a picture of its own it is led by the one that is drawn anew."""
    if unit.module not in MODULES:
        known = ", ".join(MODULES)
        raise ReverieError(f"unknown ControlNet module '{unit.module}'; choose from {known}", field="module")
    image = url_of(unit.image) if unit.image else draft.fields.get("init")
    if image is None or unit.model in OFF:
        raise ReverieError("a ControlNet needs its `model` and an `image`", field="alwayson_scripts")
    module = MODULES[unit.module]
    inert = INERT_UNIT | (OF_MODULES if module == "none" else set())
    draft.notes += unit.notes(NEUTRAL_UNIT, inert, "ControlNet ").values()
    fields = {"model": unit.model.partition(" [")[0], "image": image, "weight": unit.weight, "preprocessor": module}
    return fields | {"start": unit.guidance_start, "end": unit.guidance_end}


def url_of(text: str) -> str:
    """Return as a data URL a picture that is given as base64 or as a data URL."""
    text = "".join(text.split())
    return text if text.startswith(DATA_URL) else f"{DATA_URL}image/png;base64,{text}"


def _encode(picture: Image.Image) -> str:
    return data_url(encode(picture), "image/png")
