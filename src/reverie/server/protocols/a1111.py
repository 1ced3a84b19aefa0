"""AUTOMATIC1111's API below /sdapi/v1, as its web UI 1.10 serves webuiapi, Open WebUI, SillyTavern and LibreChat.

Fields mean what they mean there; what a request leaves open is the model's own. What cannot be honoured is refused, or
told in `reverie_notes` of `info`; a field whose value changes nothing is passed over.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reverie.errors import ReverieError
from reverie.media.masks import from_picture
from reverie.media.pictures import PARAMETERS, decode, read_texts
from reverie.requests.base import random_seed
from reverie.requests.foreign.a1111 import read_clip_skip, read_hires, read_sampler
from reverie.requests.foreign.draft import OFF, Draft, shorten
from reverie.requests.foreign.infotext import pair, split
from reverie.requests.pictures import UPSCALER_NAMES
from reverie.requests.samplers import RECORDS, SPACINGS, find_sampler, find_schedule, schedule_label
from reverie.requests.templates import add_style, read_styles
from reverie.requests.texts import picture_texts
from reverie.server.answers import Served, answer, attend, client_of, dispatcher_of
from reverie.server.api import describe_model, names_in
from reverie.server.dispatcher import Dispatcher
from reverie.server.guard import Refusal
from reverie.server.settings import Settings
from reverie.server.shelf import Shelf, content_of
from reverie.server.store import JobRecord

API = "/sdapi/v1"
router = APIRouter()
Json = dict[str, Any]

AUTOMATIC = "Automatic"
# Fields of the same meaning, ours by theirs.
SAME = {"prompt": "prompt", "negative_prompt": "negative", "seed": "seed", "steps": "steps", "cfg_scale": "guidance"}
SAME |= {"width": "width", "height": "height"}
SAME_MASKED = {"mask_blur": "mask_blur", "inpaint_full_res": "only_masked", "inpaint_full_res_padding": "padding"}
FILLS = ("surroundings", "original", "noise", "nothing")  # by inpainting_fill
FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}
MODULES = {
    "none": "none",
    "None": "none",
    "canny": "canny",
    "blur_gaussian": "blurred",
    "scribble_xdog": "scribble",
}  # ControlNet's preprocessors
MODULES |= {"lineart_standard": "lineart", "lineart_standard (from white bg & black line)": "lineart"}
RESAMPLING = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}

# Fields that are not named below: values that change nothing, and fields that change nothing whatever they hold.
NEUTRAL: Json = {"initial_noise_multiplier": 1, "inpainting_mask_weight": 1, "mask_round": True}
NEUTRAL |= {"image_cfg_scale": 1.5}  # what a model that edits pictures takes by itself, and others do not look at
NEUTRAL |= {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}
NEUTRAL |= {"hr_checkpoint_name": "Use same checkpoint", "hr_additional_modules": ["Use same choices"]}
INERT = {"url", "auth", "force_task_id", "do_not_save_samples", "do_not_save_grid", "script_args"}
NEUTRAL_UNIT: Json = {"control_mode": "Balanced", "hr_option": "Both", "resize_mode": "Just Resize"}
NEUTRAL_UNIT |= dict.fromkeys(("threshold_a", "threshold_b", "processor_res"), -1)
INERT_UNIT = {"low_vram", "pixel_perfect", "save_detected_map"}
OF_MODULES = {"threshold_a", "threshold_b", "processor_res"}  # change nothing without a preprocessor


class Lenient(BaseModel):
    """Fields of which null means not given, and others beside them."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _drop_nothing(cls, given: Any) -> Any:
        return {name: one for name, one in given.items() if one is not None} if isinstance(given, dict) else given

    def notes(self, neutral: Mapping[str, Any], inert: Collection[str] = (), prefix: str = "") -> list[str]:
        """Return a line for each other field that would change something."""
        found = {name: one for name, one in (self.model_extra or {}).items() if name not in inert}
        changing = [name for name, one in found.items() if one not in (*OFF, neutral.get(name))]
        return [f"{prefix}{name}: {shorten(found[name])} is not honoured here" for name in changing]


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

    def units(self) -> list[ControlUnit]:
        """Return the ControlNets. Raises ReverieError for other scripts that are to do something."""
        given = {name: one.get("args") or [] for name, one in self.alwayson_scripts.items()}
        units = next((given.pop(name) for name in list(given) if name.lower() == "controlnet"), [])
        for name, args in {**given, self.script_name: [self.script_name not in OFF]}.items():
            if not isinstance(args, list) or (any(args) and args[0] is not False):  # the first says whether it acts
                raise ReverieError(f"there is no script '{name}' here", field="alwayson_scripts")
        try:
            return [unit for unit in TypeAdapter(list[ControlUnit]).validate_python(units) if unit.enabled]
        except ValidationError as error:
            message = f"ControlNet: {error.errors()[0]['msg']}"
            raise ReverieError(message, field="alwayson_scripts") from None


class Redrawing(Drawing):
    """What img2img takes."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str = ""
    resize_mode: Literal[0, 1] = 0
    mask_blur: int = 4
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: bool = False


class Enlarging(Lenient):
    """What extra-single-image takes."""

    image: str
    resize_mode: Literal[0, 1] = 0
    upscaling_resize: float = Field(default=2.0, gt=0, le=64)
    upscaling_resize_w: int = Field(default=512, ge=1, le=65536)
    upscaling_resize_h: int = Field(default=512, ge=1, le=65536)
    upscaling_crop: bool = True
    upscaler_1: Literal["None", "Lanczos", "Nearest"] = "None"


class EncodedPicture(BaseModel):
    """A picture as base64."""

    image: str


# Drawing


@router.post(f"{API}/txt2img")
async def txt2img(asked: Drawing, request: Request) -> Json:
    """Draw pictures of a prompt."""
    return await _draw(asked, request)


@router.post(f"{API}/img2img")
async def img2img(asked: Redrawing, request: Request) -> Json:
    """Draw a picture anew, or the part of it under a mask."""
    return await _draw(asked, request)


async def _draw(asked: Drawing, request: Request) -> Json:
    """Draw, and answer with the pictures that are there when it is done, or interrupted."""
    served, options = dispatcher_of(request), asked.override_settings.over(_options(request))
    body, notes = await asyncio.to_thread(_submission, asked, options, served)
    record = await served.submit(body, client_of(request))
    if not asked.override_settings_restore_afterwards:
        request.app.state.a1111 = options.model_copy(update={"sd_model_checkpoint": record.submission.model})
    try:
        record = await attend(request, record)
    except Refusal:
        if record.state != "cancelled":
            raise
        notes.append("interrupted")
    return await asyncio.to_thread(_answer, served, record, asked, notes)


def _submission(asked: Drawing, options: WebOptions, served: Dispatcher) -> tuple[Json, list[str]]:
    """Return the job's body, and what of it cannot be honoured."""
    draft = Draft()
    same = {"hr_prompt": asked.prompt, "hr_negative_prompt": asked.negative_prompt}
    asked = _add_styles(asked, draft, served.settings)
    draft.fields = {ours: one for theirs, ours in SAME.items() if (one := getattr(asked, theirs)) not in (None, "")}
    draft.fields |= {"count": asked.batch_size * asked.n_iter, "tile": "xy" if asked.tiling else "none"}
    draft.fields["rng"] = "cpu" if options.randn_source == "CPU" else "gpu"
    draft.given["Clip skip"] = asked.clip_skip or options.CLIP_stop_at_last_layers
    read_clip_skip(draft)
    _choose_sampler(draft, asked)
    _ask_for_parts(draft, asked)
    kind = "text_to_image"
    if isinstance(asked, Redrawing):
        kind = "inpaint" if asked.mask else "image_to_image"
        draft.fields |= {"strength": asked.denoising_strength, **_given_pictures(asked, served.shelf)}
    draft.fields["controls"] = [_control(unit, draft, served.shelf) for unit in asked.units()]
    draft.fields["embeddings"] = _named_embeddings(asked, served.settings)
    hires = {name for name in asked.model_extra or () if name.startswith("hr_")} if not asked.enable_hr else set()
    notes = asked.notes(NEUTRAL | same, INERT | hires)
    notes += asked.override_settings.notes({}, prefix="override_settings.")
    form = FORMATS[options.samples_format]
    body = {"kind": kind, "request": draft.fields, "model": options.sd_model_checkpoint}
    return body | {"options": {"formats": [form], "keep": asked.save_images}}, [*draft.notes, *notes]


def _add_styles(asked: Drawing, draft: Draft, settings: Settings) -> Drawing:
    """Return what is asked for with its styles in the prompts; names that are not known are noted."""
    known = {} if settings.styles is None else read_styles(settings.styles)
    prompts = asked.prompt, asked.negative_prompt
    for name in asked.styles:
        if name in known:
            prompts = add_style(known[name], *prompts)
        else:
            draft.note(f"styles: {shorten(name)} is not known here")
    return asked.model_copy(update={"prompt": prompts[0], "negative_prompt": prompts[1]})


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
    width, height = asked.seed_resize_from_w, asked.seed_resize_from_h
    if asked.subseed_strength or (width > 0 and height > 0):
        seed = random_seed() if asked.subseed < 0 else asked.subseed
        variation: Json = {"seed": seed, "strength": asked.subseed_strength}
        draft.fields["variation"] = variation | ({"width": width, "height": height} if width > 0 < height else {})
    if asked.refiner_checkpoint not in OFF:
        draft.fields["refiner"] = {"model": asked.refiner_checkpoint, "switch": asked.refiner_switch_at}


def _given_pictures(asked: Redrawing, shelf: Shelf) -> Json:
    """Return the fields of the picture and its mask, cut to the asked shape where `resize_mode` says so."""
    place = _keep(shelf, asked.init_images[0])
    size = (asked.width, asked.height) if asked.resize_mode and asked.width and asked.height else None
    if size is None and not asked.mask:
        return {"init": place.name}
    picture = decode(place)
    fields = {"init": place.name if size is None else _add(shelf, ImageOps.fit(picture, size))}
    if not asked.mask:
        return fields
    mask = from_picture(decode(_keep(shelf, asked.mask))).resize(picture.size)
    mask = mask if size is None else ImageOps.fit(mask, size)
    fields["mask"] = _add(shelf, ImageOps.invert(mask) if asked.inpainting_mask_invert else mask)
    own = {ours: getattr(asked, theirs) for theirs, ours in SAME_MASKED.items()}
    return fields | own | {"fill": FILLS[asked.inpainting_fill]}


def _control(unit: ControlUnit, draft: Draft, shelf: Shelf) -> Json:
    """Return a ControlNet of the request; without a picture of its own it is led by the one that is drawn anew."""
    if unit.module not in MODULES:
        known = ", ".join(MODULES)
        raise ReverieError(f"unknown ControlNet module '{unit.module}'; choose from {known}", field="module")
    image = _keep(shelf, unit.image).name if unit.image else draft.fields.get("init")
    if image is None or unit.model in OFF:
        raise ReverieError("a ControlNet needs its `model` and an `image`", field="alwayson_scripts")
    module = MODULES[unit.module]
    inert = INERT_UNIT | (OF_MODULES if module == "none" else set())
    draft.notes += unit.notes(NEUTRAL_UNIT, inert, "ControlNet ")
    fields = {"model": unit.model.partition(" [")[0], "image": image, "weight": unit.weight, "preprocessor": module}
    return fields | {"start": unit.guidance_start, "end": unit.guidance_end}


def _named_embeddings(asked: Drawing, settings: Settings) -> list[str]:
    """Return the textual inversions that the prompts name, as the web UI finds them."""
    said = f"{asked.prompt} {asked.negative_prompt}"
    names = names_in(settings.embeddings)
    return [name for name in names if re.search(rf"(?<!\w){re.escape(Path(name).stem)}(?!\w)", said)]


def _keep(shelf: Shelf, text: str) -> Path:
    """Keep a picture that is given as base64 or as a data URL."""
    text = "".join(text.split())
    return shelf.add(content_of(text if text.startswith("data:") else f"data:image/png;base64,{text}"))


def _add(shelf: Shelf, picture: Image.Image) -> str:
    return shelf.add(_png(picture)).name


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _answer(served: Dispatcher, record: JobRecord, asked: Drawing, notes: list[str]) -> Json:
    """Return the answer for a job: its pictures, what was asked, and as JSON in a text what was drawn."""
    pictures = [path.read_bytes() for path in served.paths(record)]
    infotexts = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as picture:
            infotexts.append(read_texts(picture).get(PARAMETERS, ""))
    private = {"url", "auth"} | (set() if asked.include_init_images else {"init_images", "mask"})
    return {
        "images": [base64.b64encode(data).decode() for data in pictures if asked.send_images],
        "parameters": asked.model_dump(exclude=private),
        "info": json.dumps(_info(record, asked, infotexts) | {"reverie_notes": [*notes, *record.notes]}),
    }


def _info(record: JobRecord, asked: Drawing, infotexts: list[str]) -> Json:
    """Return what clients read of the pictures; their infotexts have it all."""
    read = [split(text) for text in infotexts]
    first = read[0].settings if read else {}
    seeds = [int(one.settings["Seed"]) for one in read] or [record.submission.request["seed"]]
    subseeds = [int(one.settings.get("Variation seed", 0)) for one in read] or [0]
    width, height = pair(first.get("Size", ""))
    return {
        **{"prompt": asked.prompt, "all_prompts": [one.prompt for one in read]},
        **{"negative_prompt": asked.negative_prompt, "all_negative_prompts": [one.negative for one in read]},
        **{"seed": seeds[0], "all_seeds": seeds, "subseed": subseeds[0], "all_subseeds": subseeds},
        **{"subseed_strength": asked.subseed_strength, "width": width, "height": height},
        **{"sampler_name": first.get("Sampler"), "steps": int(first.get("Steps", 0))},
        **{"cfg_scale": float(first.get("CFG scale", 0)), "clip_skip": int(first.get("Clip skip", 1))},
        **{"denoising_strength": asked.denoising_strength, "batch_size": asked.batch_size},
        **{"sd_model_name": record.submission.model, "sd_model_hash": None, "sd_vae_name": None, "sd_vae_hash": None},
        **{
            "restore_faces": False,
            "face_restoration_model": None,
            "styles": asked.styles,
            "extra_generation_params": {},
        },
        **{"index_of_first_image": 0, "infotexts": infotexts, "job_timestamp": _timestamp(record.created)},
    }


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))


# While it draws


def _own_jobs(request: Request) -> list[JobRecord]:
    """Return the jobs of a client that are not over."""
    active = dispatcher_of(request).active.values()
    return [one for one in active if one.client == client_of(request) and not one.is_over]


@router.get(f"{API}/progress")
async def progress(request: Request, skip_current_image: bool = False) -> Json:
    """Tell how far the client's own jobs are."""
    jobs = _own_jobs(request)
    running = next((one for one in jobs if one.state == "running"), None)
    at = (running and running.progress) or {"done": 0, "total": 0}
    share = min(1.0, 0.01 + at["done"] / max(1, at["total"])) if jobs else 0.0
    elapsed = time.time() - running.started if running and running.started else 0.0
    state = {"job": running.id if running else "", "job_count": len(jobs), "job_no": 0, "job_timestamp": "0"}
    state |= {"sampling_step": at["done"], "sampling_steps": at["total"]}
    state |= dict.fromkeys(("skipped", "interrupted", "stopping_generation"), False)
    preview = running.preview if running and not skip_current_image else None
    return {
        "progress": share,
        "eta_relative": elapsed / share - elapsed if share else 0.0,
        "state": state | ({"job_timestamp": _timestamp(running.created)} if running else {}),
        "current_image": preview and preview.partition(",")[2],
        "textinfo": None,
    }


@router.post(f"{API}/interrupt")
@router.post(f"{API}/skip")
async def interrupt(request: Request, served: Served) -> Json:
    """Stop the client's own jobs, those that wait too."""
    for record in _own_jobs(request):
        served.cancel(record)
    return {}


# WebOptions and models


def _options(request: Request) -> WebOptions:
    """Return the options that all clients of this protocol share until the server ends."""
    state = request.app.state
    if not hasattr(state, "a1111"):
        state.a1111 = WebOptions(sd_model_checkpoint=dispatcher_of(request).settings.default("text_to_image"))
    return state.a1111


@router.get(f"{API}/options")
async def options(request: Request) -> Json:
    """Return the options."""
    return _options(request).model_dump()


@router.post(f"{API}/options")
async def set_options(given: WebOptions, request: Request, served: Served) -> Json:
    """Set options; another checkpoint is loaded in the queue's order, and is there when this answers."""
    chosen = given.over(_options(request))
    model = served.settings.model_for("text_to_image", chosen.sd_model_checkpoint)
    if model != _options(request).sd_model_checkpoint:
        await answer(request, "load", {"model": model}, model)
    request.app.state.a1111 = chosen.model_copy(update={"sd_model_checkpoint": model})
    return {"reverie_notes": given.notes({})}


@router.get(f"{API}/sd-models")
async def sd_models(served: Served) -> list[Json]:
    """List the models of pictures; a title is the name alone."""
    places = served.settings.places().items()
    names = [name for name, place in places if describe_model(place)["makes"] == "pictures"]
    empty = dict.fromkeys(("hash", "sha256", "config"))
    return [{"title": name, "model_name": name, "filename": name, **empty} for name in names]


@router.post(f"{API}/unload-checkpoint")
async def unload_checkpoint(request: Request, served: Served) -> Json:
    """Let go of the chosen checkpoint."""
    served.unload(_options(request).sd_model_checkpoint)
    return {}


@router.get(f"{API}/loras")
async def loras(served: Served) -> list[Json]:
    """List the LoRAs that prompts may name."""
    files = names_in(served.settings.loras)
    return [{"name": Path(name).stem, "alias": Path(name).stem, "path": name, "metadata": {}} for name in files]


@router.get(f"{API}/embeddings")
async def embeddings(served: Served) -> Json:
    """List the textual inversions that prompts may name; what is inside is not looked at."""
    unknown = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    return {"loaded": {Path(name).stem: unknown for name in names_in(served.settings.embeddings)}, "skipped": {}}


@router.get("/controlnet/model_list")
async def controlnets(served: Served) -> Json:
    """List the ControlNets."""
    return {"model_list": [Path(name).stem for name in names_in(served.settings.controlnets)]}


@router.get(f"{API}/prompt-styles")
async def prompt_styles(served: Served) -> list[Json]:
    """List the styles."""
    styles = {} if (file := served.settings.styles) is None else await asyncio.to_thread(read_styles, file)
    return [{"name": one.name, "prompt": one.prompt, "negative_prompt": one.negative} for one in styles.values()]


@router.get(f"{API}/memory")
async def memory() -> Json:
    """Tell of this machine's memory, in bytes."""
    try:
        page, pages, free = (os.sysconf(f"SC_{name}") for name in ("PAGE_SIZE", "PHYS_PAGES", "AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return {"ram": {"error": "unavailable"}, "cuda": {"error": "unavailable"}}
    ram = {"free": free * page, "used": (pages - free) * page, "total": pages * page}
    return {"ram": ram, "cuda": {"error": "unavailable"}}


NO_FILE = dict.fromkeys(("model_name", "model_path", "model_url"))
OWN = {"aliases": None, "default_rho": -1, "need_inner_model": False}
# What is the same for everyone, by path; a POST that has nothing to do, as folders are read at every request.
FIXED: dict[str, Any] = {
    f"{API}/samplers": [{"name": one.label, "aliases": [key], "options": {}} for key, one in RECORDS.items()],
    f"{API}/schedulers": [
        {"name": name, "label": label, **OWN}
        for name, label in [("automatic", AUTOMATIC), *((key, schedule_label(key)) for key in SPACINGS)]
    ],
    f"{API}/upscalers": [{"name": name, "scale": 4, **NO_FILE} for name in ("None", *RESAMPLING)],
    f"{API}/latent-upscale-modes": [{"name": name} for name in UPSCALER_NAMES.values() if name.startswith("Latent")],
    f"{API}/scripts": {"txt2img": ["controlnet"], "img2img": ["controlnet"]},
    f"{API}/cmd-flags": {"api": True},
    "/controlnet/module_list": {"module_list": list(MODULES)},
}
EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "extensions")
FIXED |= {f"{API}/{name}": [] for name in EMPTY}
FIXED |= {f"{API}/refresh-{what}": None for what in ("checkpoints", "vae", "loras", "embeddings")}


def _serve(path: str, value: Any) -> None:
    @router.api_route(path, name=path, methods=["GET" if value is not None else "POST"])
    async def show() -> Any:
        return value


for _path, _value in FIXED.items():
    _serve(_path, _value)


# Pictures that are there


@router.post(f"{API}/extra-single-image")
async def extra_single_image(asked: Enlarging, served: Served) -> Json:
    """Enlarge a picture. What would restore faces, or is a network, is refused."""
    if changing := asked.notes({}, {"show_extras_results", "codeformer_weight", "upscale_first"}):
        raise ReverieError(changing[0], field="upscaler_1")
    return await asyncio.to_thread(_enlarge, asked, served)


def _enlarge(asked: Enlarging, served: Served) -> Json:
    picture = decode(_keep(served.shelf, asked.image))
    size = (asked.upscaling_resize_w, asked.upscaling_resize_h)
    if asked.resize_mode == 0:
        size = (round(picture.width * asked.upscaling_resize), round(picture.height * asked.upscaling_resize))
    elif not asked.upscaling_crop:
        factor = max(size[0] / picture.width, size[1] / picture.height)
        size = (round(picture.width * factor), round(picture.height * factor))
    if size[0] * size[1] > (most := served.settings.limits.pixels):
        raise ReverieError(f"{size[0]}x{size[1]} are more pixels than the {most} that this server allows")
    if asked.upscaler_1 in RESAMPLING:
        picture = ImageOps.fit(picture, (max(1, size[0]), max(1, size[1])), RESAMPLING[asked.upscaler_1])
    return {"image": base64.b64encode(_png(picture)).decode(), "html_info": ""}


@router.post(f"{API}/png-info")
async def png_info(given: EncodedPicture, served: Served) -> Json:
    """Tell what a picture says of how it was made."""

    def read() -> Json:
        with Image.open(_keep(served.shelf, given.image)) as picture:
            texts = picture_texts(picture)
        info = texts.pop(PARAMETERS, "")
        prompt, negative, settings = split(info)
        parameters = {"Prompt": prompt, "Negative prompt": negative, **settings} if info else {}
        return {"info": info, "items": texts, "parameters": parameters}

    return await asyncio.to_thread(read)
