"""Stable Diffusion in small, beautiful PyTorch: `reverie.load().text_to_image("a bear")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reverie.codecs.pictures import grid, save
    from reverie.errors import ReverieError
    from reverie.generate.image import Progress
    from reverie.generate.metadata import from_metadata
    from reverie.generate.parts import ControlInput, Hires, Refiner, Variation
    from reverie.generate.pipeline import Pipeline, load
    from reverie.generate.requests import ImageToImage, Inpaint, Outpaint, TextToImage
    from reverie.system import Conditioning, StableDiffusion

__all__ = [
    "Conditioning",
    "ControlInput",
    "Hires",
    "ImageToImage",
    "Inpaint",
    "Outpaint",
    "Pipeline",
    "Progress",
    "Refiner",
    "ReverieError",
    "StableDiffusion",
    "TextToImage",
    "Variation",
    "from_metadata",
    "grid",
    "load",
    "save",
]

_PLACES = {
    "Conditioning": "reverie.system",
    "ControlInput": "reverie.generate.parts",
    "Hires": "reverie.generate.parts",
    "ImageToImage": "reverie.generate.requests",
    "Inpaint": "reverie.generate.requests",
    "Outpaint": "reverie.generate.requests",
    "Pipeline": "reverie.generate.pipeline",
    "Progress": "reverie.generate.image",
    "Refiner": "reverie.generate.parts",
    "ReverieError": "reverie.errors",
    "StableDiffusion": "reverie.system",
    "TextToImage": "reverie.generate.requests",
    "Variation": "reverie.generate.parts",
    "from_metadata": "reverie.generate.metadata",
    "grid": "reverie.codecs.pictures",
    "load": "reverie.generate.pipeline",
    "save": "reverie.codecs.pictures",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import reverie` costs next to nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module 'reverie' has no attribute '{name}'")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
