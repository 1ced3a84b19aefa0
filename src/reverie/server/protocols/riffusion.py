"""Riffusion's `/run_inference/`, as riffusion-hobby serves it: a clip between two prompts, and its spectrogram."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, Field

from reverie.errors import ReverieError
from reverie.media.pictures import encode, to_rgb
from reverie.requests.references import data_url
from reverie.server.answers import dispatcher_of, finish
from reverie.server.dispatcher import Dispatcher
from reverie.server.store import JobRecord

router = APIRouter()
Json = dict[str, Any]


class End(BaseModel):
    """A prompt, and how it is followed."""

    prompt: str
    seed: int
    negative_prompt: str | None = None
    denoising: float = 0.75
    guidance: float = 7.0

    def fields(self) -> Json:
        """Return the request's fields, or a stop's."""
        fields = self.model_dump(include={"prompt", "seed", "guidance"})
        return fields | {"negative": self.negative_prompt or "", "strength": self.denoising}


class Inference(BaseModel):
    """What the server is asked for: what lies `alpha` of the way from `start` to `end`, over a seed image."""

    start: End
    end: End
    alpha: float = Field(ge=0, le=1)
    num_inference_steps: int = 50
    seed_image_id: str = "og_beat"
    mask_image_id: str | None = None


@router.post("/run_inference/")
async def run_inference(asked: Inference, request: Request) -> Json:
    """Play what is asked for.

    A seed image, or a mask, is the PNG of that name in the server's folders; without the seed image the clip is drawn
    from noise, and `reverie_notes` says so.
    """
    served = dispatcher_of(request)
    fields, notes = asked.start.fields(), []
    fields |= {"to": [asked.end.fields()], "alpha": asked.alpha, "steps": asked.num_inference_steps}
    seed_image = f"{asked.seed_image_id}.png"
    if _is_here(served, seed_image):
        fields |= {"init": seed_image} | ({"mask": f"{asked.mask_image_id}.png"} if asked.mask_image_id else {})
    else:
        notes.append(
            f"there is no seed image '{asked.seed_image_id}' here; the clip is drawn from noise, without a mask"
        )
    record = await finish(request, {"kind": "music", "request": fields, "options": {"formats": ["mp3", "png"]}})
    return await asyncio.to_thread(_answer, served, record) | {"reverie_notes": [*notes, *record.notes]}


def _is_here(served: Dispatcher, name: str) -> bool:
    try:
        served.settings.resolver()("sound", name)
    except ReverieError:
        return False
    return True


def _answer(served: Dispatcher, record: JobRecord) -> Json:
    """Return the spectrogram as JPEG and the sound as MP3, and how many seconds it has."""
    sound, spectrogram = sorted(served.paths(record), key=lambda path: path.suffix)
    with Image.open(spectrogram) as picture:
        image = encode(to_rgb(picture), "JPEG", quality=95)
    (seconds,) = (record.result or {})["seconds"]
    audio = data_url(sound.read_bytes(), "audio/mpeg")
    return {"image": data_url(image, "image/jpeg"), "audio": audio, "duration_s": seconds}
