"""The texts that pictures, films and sounds carry of the request that made them: our JSON, and what others read."""

from __future__ import annotations

import json
from typing import Any

from reverie.media.encoder import COMMENT
from reverie.media.pictures import PARAMETERS, REQUEST, parameters_text
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.recorded import Request
from reverie.requests.samplers import RECORDS, schedule_label

TITLE = "title"
LONGEST_FILM_TITLE, LONGEST_MUSIC_TITLE = 200, 100  # characters
NOTHING: tuple[object, ...] = (None, (), [], "")  # what a field holds where the request says nothing of it


def picture_texts(request: TextToImage, model: str) -> dict[str, str]:
    """Return what the picture of a request, with size and guidance filled in, carries; `model` names what drew it."""
    fields = {
        "Steps": request.steps,
        "Sampler": RECORDS[request.sampler].label,
        "Schedule type": schedule_label(request.schedule),
        "CFG scale": f"{request.scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
        "RNG": "NV" if request.rng == "gpu" else "CPU",  # NV: a GPU's, drawn on the CPU
        "CFG Rescale": request.guidance_rescale or None,
        "Dynamic thresholding": request.threshold,
        **_further(request),
    }
    return {
        PARAMETERS: parameters_text(request.prompt, request.negative, fields),
        REQUEST: json.dumps(_record(request, model, request.recorded())),
    }


def _further(request: TextToImage) -> dict[str, object]:
    """Name what a request asks for beyond a prompt, by AUTOMATIC1111's names; what it does not ask for is left out."""
    fields: dict[str, object] = {
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "Sampler RNG": "GPU" if request.rng == "cpu_then_gpu" else None,
        "Tiling": request.tile if request.tile != "none" else None,
    }
    if request.discard_penultimate:
        fields["Discard penultimate sigma"] = True
    if request.guidance_interval != (0.0, 1.0):
        fields["Guidance interval"] = "{:g} to {:g}".format(*request.guidance_interval)
    if request.cache_steps > 1:
        fields["Cache steps"] = request.cache_steps
    if request.merge_tokens:
        fields["Token merging ratio"] = f"{request.merge_tokens:g}"
    if isinstance(request, ImageToImage | Outpaint):
        fields["Denoising strength"] = f"{request.strength:g}"
    if isinstance(request, Inpaint | Outpaint):
        fields |= {"Mask blur": request.mask_blur, "Masked content": request.fill}
    if variation := request.variation:
        fields |= {"Variation seed": variation.seed, "Variation seed strength": f"{variation.strength:g}"}
        if variation.width and variation.height:
            fields["Seed resize from"] = f"{variation.width}x{variation.height}"
    if hires := request.hires:
        larger = hires.size(request.width or 0, request.height or 0, 8)
        fields |= {"Hires resize": f"{larger[0]}x{larger[1]}", "Hires upscaler": hires.upscaler}
        fields |= {"Hires steps": hires.steps, "Hires denoising strength": f"{hires.strength:g}"}
    if refiner := request.refiner:
        fields |= {"Refiner": refiner.model, "Refiner switch at": f"{refiner.switch:g}"}
    return fields


def film_texts(animation: Animation, model: str) -> dict[str, str]:
    """Return what the file of a film carries; `model` names what drew it."""
    shown = [keyframe.prompt or "a picture" for keyframe in animation.keyframes]
    ours = _record(animation, model, animation.recorded())
    return {REQUEST: json.dumps(ours), TITLE: " → ".join(shown)[:LONGEST_FILM_TITLE]}


def music_texts(music: Music, model: str, film: Film | None = None) -> dict[str, str]:
    """Return the tags that the file of a clip carries, or of the film to it; `model` names what played it.

    What the request leaves open is left out: a WAV file takes few bytes (media/sound.py). The JSON is ASCII, as
    libsndfile spoils other letters in an MP3's long texts.
    """
    ours = _record(music, model, _given(music))
    if film is not None:
        ours["film"] = _given(film)
    title = " → ".join([music.prompt, *(stop.prompt for stop in music.to)])[:LONGEST_MUSIC_TITLE]
    tags = {COMMENT: json.dumps(ours, separators=(",", ":"))}
    return {TITLE: title, **tags} if title else tags


def _record(request: Request, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"kind": request.kind, "model": model, "request": fields}


def _given(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.recorded().items() if value not in NOTHING}
