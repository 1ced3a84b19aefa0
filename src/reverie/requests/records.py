"""Records of files: the request that made a picture, a film or a sound, ours or another program's.

Ours are texts that the file carries, written and read here; other programs' are read in `foreign`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import name_of
from reverie.media.pictures import PARAMETERS, REQUEST, parameters_text
from reverie.requests.base import Request, SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.parts import UPSCALER_NAMES
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.references import looking_in, plain_name, recorded_name
from reverie.requests.samplers import RECORDS, schedule_label
from reverie.requests.texts import Carrier, json_object, read_carrier

KINDS: dict[str, type[SampledRequest]] = {
    kind.kind: kind for kind in (TextToImage, ImageToImage, Inpaint, Outpaint, Animation, Music)
}
"""Every kind of request by its name in JSON and metadata."""

UPSCALER = "upscaler"  # by what a picture was enlarged after it was drawn
TITLE = "title"
LONGEST_TITLE = 200  # characters; half as many for sounds, as a WAV file takes few bytes
NOTHING: tuple[object, ...] = (None, (), [], "")  # what a field holds where the request says nothing of it


@dataclass(frozen=True)
class Record:
    """What a file says of how it was made: the request, the model's name, and what of it cannot be honoured, in lines.

    `film` is how the pictures of a film to music were drawn.
    """

    request: SampledRequest
    model: str
    notes: tuple[str, ...] = ()
    film: Film | None = None


def with_upscaler(text: str, upscaler: str) -> str:
    """Return our JSON of a picture, which says by what it was enlarged since."""
    if (data := json_object(text)) is None:
        return text
    return json.dumps({**data, UPSCALER: ", ".join([*filter(None, [data.get(UPSCALER)]), name_of(upscaler)])})


def texts(request: SampledRequest, model: str, film: Film | None = None) -> dict[str, str]:
    """Return the texts that the file of a request carries: our JSON, and what other programs read.

    Sizes and guidance are to be filled in; `model` names what drew it. Music leaves out what the request leaves open,
    as a WAV file takes few bytes, and its JSON is ASCII, as libsndfile spoils other letters in an MP3's long texts.
    """
    if isinstance(request, Music):
        ours = {"kind": request.kind, "model": model, "request": _given_fields(request)}
        if film is not None:
            ours["film"] = _given_fields(film)
        title = _title([request.prompt, *(stop.prompt for stop in request.to)], LONGEST_TITLE // 2)
        return {**title, REQUEST: json.dumps(ours, separators=(",", ":"))}
    ours = {"kind": request.kind, "model": model, "request": request.to_record()}
    if isinstance(request, Animation):
        return {REQUEST: json.dumps(ours), **_title([one.prompt or "a picture" for one in request.keyframes])}
    assert isinstance(request, TextToImage)
    return {PARAMETERS: _parameters(request, model), REQUEST: json.dumps(ours)}


def _given_fields(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.to_record().items() if value not in NOTHING}


def _title(prompts: list[str], longest: int = LONGEST_TITLE) -> dict[str, str]:
    title = " → ".join(prompts)[:longest]
    return {TITLE: title} if title else {}


def _parameters(request: TextToImage, model: str) -> str:
    """Write AUTOMATIC1111's text of a request."""
    fields = {
        "Steps": request.steps,
        "Sampler": RECORDS[request.sampler].label,
        "Schedule type": schedule_label(request.schedule),
        "CFG scale": f"{request.scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": plain_name(model),  # our hash is not that program's
        "RNG": "NV" if request.rng == "gpu" else "CPU",  # NV: a GPU's, drawn on the CPU
        "CFG Rescale": request.guidance_rescale or None,
        "Dynamic thresholding": request.threshold,
        **_further(request),
    }
    return parameters_text(request.prompt, request.negative, fields)


def _further(request: TextToImage) -> dict[str, object]:
    """Name what a request asks for beyond a prompt, by AUTOMATIC1111's names; what it does not ask for is left out."""
    fields: dict[str, object] = {
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "Eta DDIM" if request.sampler == "ddim" else "Eta": request.eta,
        "Timesteps": ", ".join(f"{t:g}" for t in request.timesteps) or None,
        "Sigmas": ", ".join(map(repr, request.sigmas)) or None,
        "Sampler RNG": "GPU" if request.rng == "cpu_then_gpu" else None,
        "Discard penultimate sigma": request.discard_penultimate or None,
        "Tiling": request.tile if request.tile != "none" else None,
        "Tile size": request.tile_size,
        "Template": request.template or None,  # as the extension "dynamic prompts" calls them
        "Negative Template": request.negative_template or None,
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
        fields |= {"Hires resize": f"{larger[0]}x{larger[1]}", "Hires upscaler": _upscaler_label(hires.upscaler)}
        fields |= {"Hires steps": hires.steps, "Hires denoising strength": f"{hires.strength:g}"}
    if refiner := request.refiner:
        fields |= {"Refiner": recorded_name(refiner.model), "Refiner switch at": f"{refiner.switch:g}"}
    return fields


def _upscaler_label(name: str) -> str:
    """Return what AUTOMATIC1111 calls an upscaler: a file by its name without suffix."""
    return UPSCALER_NAMES.get(name) or Path(recorded_name(name)).stem


def read_own(texts: Mapping[str, str], *folders: Path) -> Record | None:
    """Return what `texts` says of a file, or None where it holds nothing of ours.

    The files that the request names are looked for in `folders`, such as the file's own. Raises ReverieError where that
    is damaged, or of a kind that this version does not know.
    """
    text = texts.get(REQUEST)
    if text is None:
        return None
    try:
        data = json.loads(text)
        kind, model, request, film = data["kind"], str(data["model"]), dict(data["request"]), data.get("film")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReverieError(f"the file's '{REQUEST}' text is damaged: {error!r}") from error
    if kind not in KINDS:
        raise ReverieError(f"the file was made by a request of kind {kind!r}; this version knows {', '.join(KINDS)}")
    with looking_in(*folders):
        return Record(KINDS[kind].of(request), model, film=None if film is None else Film.of(film))


def read_record(file: Image.Image | str | Path) -> Record:
    """Return what a picture, film, sound, folder of frames, or an image with its `.info` says of how it was made.

    Raises ReverieError where there is no such file, it says nothing, that is damaged, or what decides the picture
    cannot be honoured.
    """
    carrier = read_carrier(file)
    folders = () if isinstance(file, Image.Image) else (Path(file).absolute().parent,)
    if (own := read_own(carrier.texts, *folders)) is not None:
        own = replace(own, notes=tuple(_since(own.request, carrier)))
        return own if isinstance(file, Image.Image) else replace(own, request=_beside(own.request, Path(file)))
    named = "this picture" if isinstance(file, Image.Image) else f"'{file}'"
    try:
        with looking_in(*folders):
            record = _read_foreign(carrier)
    except ReverieError as error:
        raise ReverieError(f"{named}: {error}", field=error.field) from error
    if record is None:
        raise ReverieError(f"{named} {_silence(carrier)}")
    return record


def _since(request: SampledRequest, carrier: Carrier) -> Iterator[str]:
    """Say what became of a picture after it was drawn, which is not done again."""
    if not isinstance(request, TextToImage) or request.count > 1:  # a sheet of several
        return
    drawn, by = _drawn_size(request), json.loads(carrier.texts[REQUEST]).get(UPSCALER)
    if by is not None:
        yield f"the picture was enlarged by '{by}' since; do it with `reverie upscale`"
    elif carrier.size and drawn and carrier.size != drawn:
        was, now = (f"{width}x{height}" for width, height in (drawn, carrier.size))
        yield f"the picture was brought from {was} pixels to {now} since"


def _drawn_size(request: TextToImage) -> tuple[int, int] | None:
    """Return the width and height of the pictures of a settled request; None where they are not known."""
    if isinstance(request, Inpaint) and request.only_masked:
        return request.init.size
    last = request if request.hires is None else request.hires
    return None if last.width is None or last.height is None else (last.width, last.height)


def _silence(carrier: Carrier) -> str:
    """Say why a file's texts are no settings."""
    if '"nodes"' in carrier.texts.get("workflow", ""):
        return "holds the workflow of ComfyUI's editor without what was drawn by it; open it there, and save it anew"
    for name, text in carrier.texts.items():
        if data := json_object(text):
            return f"says in '{name}' what no program that is known here writes (it holds {', '.join(list(data)[:4])})"
    return "does not say how it was made; give one that still has its metadata"


def _read_foreign(carrier: Carrier) -> Record | None:
    from reverie.requests.foreign import read_draft  # a dozen readers, which drawing does not need

    if (draft := read_draft(carrier)) is None:
        return None
    picture = draft.request(carrier.size)
    if carrier.kind == "sound":
        return Record(
            Music.of({"prompt": picture.prompt, **picture.sampling_fields()}), draft.model, tuple(draft.notes)
        )
    if carrier.kind == "film":
        draft.note("a film: here one picture of its settings is drawn")
    return Record(picture, draft.model, tuple(draft.notes))


def _beside(request: SampledRequest, file: Path) -> SampledRequest:
    """Let the adapters of a record be looked for beside the file that carries it."""
    return request.replace(folders=(str(file.absolute().parent),)) if request.sums else request


def from_metadata(file: Image.Image | str | Path) -> SampledRequest:
    """Return the request that made a picture, a film or a sound: a file, or an image with its `.info`."""
    return read_record(file).request
