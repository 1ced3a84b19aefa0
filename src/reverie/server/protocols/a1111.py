"""AUTOMATIC1111's API below /sdapi/v1, as its web UI 1.10 serves webuiapi, Open WebUI, SillyTavern and LibreChat.

What cannot be honoured is refused, or told in `reverie_notes` of `info`; a field whose value changes nothing is passed
over.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import time
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from PIL import Image, ImageOps
from pydantic import BaseModel, Field

from reverie.errors import ReverieError
from reverie.media.pictures import PARAMETERS, decode, encode, read_texts, size_of
from reverie.requests.base import unknown
from reverie.requests.foreign.a1111 import pair, split
from reverie.requests.foreign.a1111_api import AUTOMATIC, MODULES, SCRIPTS, Drawing, Lenient, Redrawing, WebOptions
from reverie.requests.parts import UPSCALER_NAMES
from reverie.requests.samplers import RECORDS, SPACINGS, schedule_label
from reverie.requests.templates import read_styles
from reverie.requests.texts import picture_texts
from reverie.server.answers import Served, answer, attend, client_of, dispatcher_of, failure
from reverie.server.api import describe_model, machine_memory, names_in
from reverie.server.dispatcher import Dispatcher
from reverie.server.protocols.a1111_jobs import keep, submissions_of, upscalers_of
from reverie.server.store import JobRecord

API = "/sdapi/v1"
router = APIRouter()
Json = dict[str, Any]

RESAMPLING = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
UPSCALE: Json = {"kind": "upscale", "options": {"keep": False}}


class NamedPicture(BaseModel):
    """A picture as base64, with a name that nothing depends on."""

    data: str
    name: str = ""


class Enlarging(Lenient):
    """What the two routes of extras take: one picture, or several."""

    image: str = ""
    imageList: list[NamedPicture] = Field(default=[], max_length=256)
    resize_mode: Literal[0, 1] = 0
    upscaling_resize: float = Field(default=2.0, gt=0, le=64)
    upscaling_resize_w: int = Field(default=512, ge=1, le=65536)
    upscaling_resize_h: int = Field(default=512, ge=1, le=65536)
    upscaling_crop: bool = True
    upscaler_1: str = "None"

    def sizes(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size that a picture is enlarged to, and the one that it is cut to."""
        if self.resize_mode == 0:
            factor = self.upscaling_resize
        else:
            factor = max(self.upscaling_resize_w / width, self.upscaling_resize_h / height)
        larger = max(1, round(width * factor)), max(1, round(height * factor))
        cut = self.resize_mode == 1 and self.upscaling_crop
        return larger, (self.upscaling_resize_w, self.upscaling_resize_h) if cut else larger


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
    """Draw, and answer with the pictures that are there when it is done, or interrupted.

    Each of the `n_iter` batches is a job, so that one of them can be skipped.
    """
    served, options = dispatcher_of(request), asked.override_settings.over(_options(request))
    bodies, notes = await asyncio.to_thread(submissions_of, asked, options, served)
    records = await attend(request, bodies)
    for number, record in enumerate(records, 1):
        if record.state == "cancelled":
            notes.append(f"batch {number} of {len(records)}: interrupted or skipped")
        elif record.state != "done":
            raise failure(record)
    if not asked.override_settings_restore_afterwards:
        request.app.state.a1111 = options.model_copy(update={"sd_model_checkpoint": records[0].submission.model})
    return await asyncio.to_thread(_answer, served, records, asked, notes)


def _answer(served: Dispatcher, records: list[JobRecord], asked: Drawing, notes: list[str]) -> Json:
    """Return the answer for jobs: their pictures, what was asked, and as JSON in a text what was drawn."""
    pictures = [path.read_bytes() for record in records for path in served.paths(record)]
    notes += dict.fromkeys(note for record in records for note in record.notes)
    infotexts = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as picture:
            infotexts.append(read_texts(picture).get(PARAMETERS, ""))
    private = {"url", "auth"} | (set() if asked.include_init_images else {"init_images", "mask"})
    return {
        "images": [base64.b64encode(data).decode() for data in pictures if asked.send_images],
        "parameters": asked.model_dump(exclude=private),
        "info": json.dumps(_info(records[0], asked, infotexts) | {"reverie_notes": notes}),
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
        **{"restore_faces": False, "face_restoration_model": None},
        **{"styles": asked.styles, "extra_generation_params": {}},
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
    batch = {"job_no": 0, "job_count": len(jobs)} | ((running and running.submission.attached) or {})
    share = 0.01 + (batch["job_no"] + at["done"] / max(1, at["total"])) / batch["job_count"] if jobs else 0.0
    share = min(1.0, share)
    elapsed = time.time() - running.started if running and running.started else 0.0
    state: Json = {"job": running.id if running else "", "job_timestamp": "0"} | batch
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
async def interrupt(request: Request, served: Served) -> Json:
    """Stop the client's own jobs, those that wait too."""
    for record in _own_jobs(request):
        served.cancel(record)
    return {}


@router.post(f"{API}/skip")
async def skip(request: Request, served: Served) -> None:
    """Stop what is drawn of the client's own jobs; those that wait go on."""
    for record in _own_jobs(request):
        if record.state == "running":
            served.cancel(record)


# Options and models


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
    return {"reverie_notes": [*given.notes({}).values()]}


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


@router.get(f"{API}/upscalers")
async def upscalers(served: Served) -> list[Json]:
    """List what enlarges pictures."""
    named = dict.fromkeys(("None", *RESAMPLING)) | upscalers_of(served.settings)
    empty = dict.fromkeys(("model_name", "model_url"))
    return [{"name": name, "model_path": file, "scale": 4, **empty} for name, file in named.items()]


@router.get("/controlnet/model_list")
async def controlnets(served: Served) -> Json:
    """List the ControlNets."""
    return {"model_list": [Path(name).stem for name in names_in(served.settings.controlnets)]}


@router.get(f"{API}/prompt-styles")
async def prompt_styles(served: Served) -> list[Json]:
    """List the styles."""
    styles = {} if (file := served.settings.styles) is None else await asyncio.to_thread(read_styles, file)
    return [{"name": name, "prompt": one.prompt, "negative_prompt": one.negative} for name, one in styles.items()]


@router.get(f"{API}/memory")
async def memory() -> Json:
    """Tell of this machine's memory, in bytes."""
    (total, free), unknown = machine_memory(), {"error": "unavailable"}
    ram = {"free": free, "used": total - free, "total": total} if total else unknown
    return {"ram": ram, "cuda": unknown}


OWN = {"aliases": None, "default_rho": -1, "need_inner_model": False}
LISTED = [*SCRIPTS, "controlnet m2m"]  # by which webuiapi sees that it must take a ControlNet back for the next picture
# What is the same for everyone, by path; a POST that has nothing to do, as folders are read at every request.
FIXED: dict[str, Any] = {
    f"{API}/samplers": [{"name": one.label, "aliases": [key], "options": {}} for key, one in RECORDS.items()],
    f"{API}/schedulers": [
        {"name": name, "label": label, **OWN}
        for name, label in [("automatic", AUTOMATIC), *((key, schedule_label(key)) for key in SPACINGS)]
    ],
    f"{API}/latent-upscale-modes": [{"name": name} for name in UPSCALER_NAMES.values() if name.startswith("Latent")],
    f"{API}/scripts": {"txt2img": LISTED, "img2img": LISTED},
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
async def extra_single_image(asked: Enlarging, request: Request) -> Json:
    """Enlarge a picture. What would restore faces, or blend two upscalers, is refused."""
    (image,) = await _enlarge(asked, [asked.image], request)
    return {"image": image, "html_info": ""}


@router.post(f"{API}/extra-batch-images")
async def extra_batch_images(asked: Enlarging, request: Request) -> Json:
    """Enlarge pictures."""
    return {"images": await _enlarge(asked, [one.data for one in asked.imageList], request), "html_info": ""}


async def _enlarge(asked: Enlarging, images: list[str], request: Request) -> list[str]:
    """Enlarge pictures, by a learned upscaler as jobs, and return them as base64. Raises ReverieError."""
    served = dispatcher_of(request)
    for name, note in asked.notes({}, {"show_extras_results", "codeformer_weight", "upscale_first"}).items():
        raise ReverieError(note, field=name)
    learned = upscalers_of(served.settings)
    if asked.upscaler_1 not in (known := ["None", *RESAMPLING, *learned]):
        raise ReverieError(unknown("upscaler", asked.upscaler_1, known), field="upscaler_1")

    def look(image: str) -> tuple[Path, tuple[int, int], tuple[int, int]]:
        place = keep(served.shelf, image)
        larger, cut = asked.sizes(*size_of(place))
        if (most := served.settings.limits.pixels) < max(math.prod(larger), math.prod(cut)):
            raise ReverieError(f"{larger[0]}x{larger[1]} are more pixels than the {most} that this server allows")
        return place, larger, cut

    def cut(place: Path, size: tuple[int, int]) -> str:
        picture, kind = decode(place), RESAMPLING.get(asked.upscaler_1, Image.Resampling.LANCZOS)
        picture = picture if asked.upscaler_1 == "None" else ImageOps.fit(picture, size, kind)
        return base64.b64encode(encode(picture)).decode()

    seen = [await asyncio.to_thread(look, image) for image in images]
    places = [place for place, _, _ in seen]
    records = list[JobRecord]()
    if (file := learned.get(asked.upscaler_1)) is not None:
        wanted = [{"picture": place.name, "upscaler": file, "width": w, "height": h} for place, (w, h), _ in seen]
        records = await attend(request, [UPSCALE | {"request": one} for one in wanted])
        if failed := next((record for record in records if record.state != "done"), None):
            raise failure(failed)
        places = [served.paths(record)[0] for record in records]
    made = [await asyncio.to_thread(cut, place, size) for place, (_, _, size) in zip(places, seen, strict=True)]
    for record in records:
        served.delete(record)
    return made


@router.post(f"{API}/png-info")
async def png_info(given: EncodedPicture, served: Served) -> Json:
    """Tell what a picture says of how it was made."""

    def read() -> Json:
        with Image.open(keep(served.shelf, given.image)) as picture:
            texts = picture_texts(picture)
        info = texts.pop(PARAMETERS, "")
        prompt, negative, settings = split(info)
        parameters = {"Prompt": prompt, "Negative prompt": negative, **settings} if info else {}
        return {"info": info, "items": texts, "parameters": parameters}

    return await asyncio.to_thread(read)
