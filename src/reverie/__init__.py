"""Stable Diffusion in small, beautiful PyTorch: `reverie.load().text_to_image("a bear")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reverie import video
    from reverie.animation.draw import Frame
    from reverie.client import AsyncClient, Client
    from reverie.errors import ReverieError
    from reverie.generate.explain import Explanation
    from reverie.jobs.batches import compare
    from reverie.media.pictures import grid, save
    from reverie.media.sound import Sound
    from reverie.music.sections import Recording
    from reverie.pipeline import Pipeline, load
    from reverie.progress import Progress
    from reverie.requests.films import Animation, Keyframe
    from reverie.requests.music import Film, Music, Stop
    from reverie.requests.parts import ControlInput, Hires, IPAdapterInput, Refiner, Region, Variation
    from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage
    from reverie.requests.records import from_metadata
    from reverie.similarity.embed import Clip, load_clip
    from reverie.system import Conditioning, StableDiffusion

__all__ = [
    "Animation",
    "AsyncClient",
    "Client",
    "Clip",
    "Conditioning",
    "ControlInput",
    "Explanation",
    "Film",
    "Frame",
    "Hires",
    "IPAdapterInput",
    "ImageToImage",
    "Inpaint",
    "Keyframe",
    "Music",
    "Outpaint",
    "Pipeline",
    "Progress",
    "Recording",
    "Refiner",
    "Region",
    "ReverieError",
    "Sound",
    "StableDiffusion",
    "Stop",
    "TextToImage",
    "Variation",
    "compare",
    "from_metadata",
    "grid",
    "load",
    "load_clip",
    "save",
    "video",
]

_PLACES = {
    "Animation": "reverie.requests.films",
    "AsyncClient": "reverie.client",
    "Client": "reverie.client",
    "Clip": "reverie.similarity.embed",
    "Conditioning": "reverie.system",
    "ControlInput": "reverie.requests.parts",
    "Explanation": "reverie.generate.explain",
    "Film": "reverie.requests.music",
    "Frame": "reverie.animation.draw",
    "Hires": "reverie.requests.parts",
    "IPAdapterInput": "reverie.requests.parts",
    "ImageToImage": "reverie.requests.pictures",
    "Inpaint": "reverie.requests.pictures",
    "Keyframe": "reverie.requests.films",
    "Music": "reverie.requests.music",
    "Outpaint": "reverie.requests.pictures",
    "Pipeline": "reverie.pipeline",
    "Progress": "reverie.progress",
    "Recording": "reverie.music.sections",
    "Refiner": "reverie.requests.parts",
    "Region": "reverie.requests.parts",
    "ReverieError": "reverie.errors",
    "Sound": "reverie.media.sound",
    "StableDiffusion": "reverie.system",
    "Stop": "reverie.requests.music",
    "TextToImage": "reverie.requests.pictures",
    "Variation": "reverie.requests.parts",
    "compare": "reverie.jobs.batches",
    "from_metadata": "reverie.requests.records",
    "grid": "reverie.media.pictures",
    "load": "reverie.pipeline",
    "load_clip": "reverie.similarity.embed",
    "save": "reverie.media.pictures",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import reverie` costs next to nothing."""
    if name == "video":
        return import_module("reverie.video")
    if name not in _PLACES:
        raise AttributeError(f"module 'reverie' has no attribute '{name}'")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
