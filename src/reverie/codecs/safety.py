"""What becomes of pictures that a safety checker holds back? They are black, and say why."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from reverie.codecs.clip_images import Preprocessing
from reverie.models.safety import SafetyChecker

NOTE = "held back by the safety checker"


def screened(checker: SafetyChecker, pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[bool]]:
    """Return the pictures, those held back in black, and which they are.

    A black one keeps its metadata, so that the request can be seen, and a note in `.info["safety"]`.
    """
    if not pictures:
        return [], []
    device = checker.visual_projection.weight.device
    size = checker.config.vision.image_size
    pixels = Preprocessing(size=size, edge=size)(pictures).to(device)
    held = checker(pixels).tolist()
    return [_black(picture) if bad else picture for picture, bad in zip(pictures, held, strict=True)], held


def _black(picture: Image.Image) -> Image.Image:
    black = Image.new("RGB", picture.size)
    black.info.update(picture.info)
    black.info["safety"] = NOTE
    return black
