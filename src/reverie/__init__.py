"""Stable Diffusion in small, beautiful PyTorch: `reverie.load().text_to_image("a bear")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reverie import video
    from reverie.animation.draw import Frame
    from reverie.animation.request import Animation, Keyframe
    from reverie.codecs.pictures import grid, save
    from reverie.codecs.sound import Sound
    from reverie.errors import ReverieError
    from reverie.generate.explain import Explanation
    from reverie.generate.image import Progress
    from reverie.generate.metadata import from_metadata
    from reverie.generate.parts import ControlInput, Hires, Refiner, Variation
    from reverie.generate.requests import ImageToImage, Inpaint, Outpaint, TextToImage
    from reverie.music.recording import Recording
    from reverie.music.request import Film, Music, Stop
    from reverie.pipeline import Pipeline, load
    from reverie.similarity.embed import Clip, load_clip
    from reverie.system import Conditioning, StableDiffusion

__all__ = [
    "Animation",
    "Clip",
    "Conditioning",
    "ControlInput",
    "Explanation",
    "Film",
    "Frame",
    "Hires",
    "ImageToImage",
    "Inpaint",
    "Keyframe",
    "Music",
    "Outpaint",
    "Pipeline",
    "Progress",
    "Recording",
    "Refiner",
    "ReverieError",
    "Sound",
    "StableDiffusion",
    "Stop",
    "TextToImage",
    "Variation",
    "from_metadata",
    "grid",
    "load",
    "load_clip",
    "save",
    "video",
]

_PLACES = {
    "Animation": "reverie.animation.request",
    "Clip": "reverie.similarity.embed",
    "Conditioning": "reverie.system",
    "ControlInput": "reverie.generate.parts",
    "Explanation": "reverie.generate.explain",
    "Film": "reverie.music.request",
    "Frame": "reverie.animation.draw",
    "Hires": "reverie.generate.parts",
    "ImageToImage": "reverie.generate.requests",
    "Inpaint": "reverie.generate.requests",
    "Keyframe": "reverie.animation.request",
    "Music": "reverie.music.request",
    "Outpaint": "reverie.generate.requests",
    "Pipeline": "reverie.pipeline",
    "Progress": "reverie.generate.image",
    "Recording": "reverie.music.recording",
    "Refiner": "reverie.generate.parts",
    "ReverieError": "reverie.errors",
    "Sound": "reverie.codecs.sound",
    "StableDiffusion": "reverie.system",
    "Stop": "reverie.music.request",
    "TextToImage": "reverie.generate.requests",
    "Variation": "reverie.generate.parts",
    "from_metadata": "reverie.generate.metadata",
    "grid": "reverie.codecs.pictures",
    "load": "reverie.pipeline",
    "load_clip": "reverie.similarity.embed",
    "save": "reverie.codecs.pictures",
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
