"""Stable Diffusion in small, beautiful PyTorch: `reverie.load().text_to_image("a bear")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reverie.codecs.pictures import grid, save
    from reverie.errors import ReverieError
    from reverie.generate.image import Progress
    from reverie.generate.metadata import from_metadata
    from reverie.generate.pipeline import Pipeline, load
    from reverie.generate.requests import TextToImage
    from reverie.system import Conditioning, StableDiffusion

__all__ = [
    "Conditioning",
    "Pipeline",
    "Progress",
    "ReverieError",
    "StableDiffusion",
    "TextToImage",
    "from_metadata",
    "grid",
    "load",
    "save",
]

_PLACES = {
    "Conditioning": "reverie.system",
    "Pipeline": "reverie.generate.pipeline",
    "Progress": "reverie.generate.image",
    "ReverieError": "reverie.errors",
    "StableDiffusion": "reverie.system",
    "TextToImage": "reverie.generate.requests",
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
