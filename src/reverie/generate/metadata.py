"""How does a picture say which request made it? As AUTOMATIC1111's `parameters`, and as our JSON, which reads back."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from reverie.codecs.pictures import PARAMETERS, REQUEST, open_picture, parameters_text, read_texts
from reverie.errors import ReverieError
from reverie.generate.requests import KINDS, ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.samplers import RECORDS, schedule_label

def texts(request: TextToImage, model: str) -> dict[str, str]:
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
    ours = {"kind": request.kind, "model": model, "request": request.recorded()}
    return {
        PARAMETERS: parameters_text(request.prompt, request.negative, fields),
        REQUEST: json.dumps(ours),
    }


def _further(request: TextToImage) -> dict[str, object]:
    """Name what a request asks for beyond a prompt, by AUTOMATIC1111's names; what it does not ask for is left out."""
    fields: dict[str, object] = {
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "Sampler RNG": "GPU" if request.rng == "cpu_then_gpu" else None,
        "Tiling": request.tile if request.tile != "none" else None,
    }
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


def read_metadata(picture: Image.Image | str | Path) -> tuple[TextToImage, str]:
    """Return the request that made a picture (a file, or an image with its `.info`), and the name of its model.

    Raises ReverieError where the picture does not hold one.
    """
    if not isinstance(picture, Image.Image):
        picture = open_picture(picture)
    text = read_texts(picture).get(REQUEST)
    if text is None:
        raise ReverieError("this picture holds no request of reverie's; give one that `reverie image` wrote")
    try:
        data = json.loads(text)
        kind, model, request = data["kind"], data["model"], data["request"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReverieError(f"the picture's '{REQUEST}' text is damaged: {error!r}") from error
    if kind not in KINDS or not isinstance(request, dict):
        raise ReverieError(f"the picture was made by a request of kind {kind!r}; this version knows {', '.join(KINDS)}")
    return KINDS[kind](**request), str(model)


def from_metadata(picture: Image.Image | str | Path) -> TextToImage:
    """Return the request that made a picture: a file, or an image with its `.info`."""
    return read_metadata(picture)[0]
