"""CLIP's image preprocessing (resize, centre crop, normalise), and the safety checker that sees through it.

References: `_transform` of openai/CLIP (clip.py), `image_transform` of open_clip (transform.py), and transformers'
CLIPImageProcessor. They agree but for where a crop begins whose margin is odd: see `round_margin` and `floor_margin`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from reverie.errors import ReverieError
from reverie.media.pictures import eight_bits, read_stored
from reverie.models.clip import IMAGE_MEAN, IMAGE_STD, SafetyChecker, normalise

Picture = Image.Image | str | Path
Size = tuple[int, int]
RESAMPLES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def shortest(size: Size, edge: int) -> Size:
    """Bring the shortest side to `edge` and keep the shape; what does not fill a pixel is dropped."""
    width, height = size
    return edge * width // min(size), edge * height // min(size)


def longest(size: Size, edge: int) -> Size:
    """Bring the longest side to `edge` and keep the shape; the rest is filled with black (open_clip's `longest`)."""
    ratio = max(size) / edge
    width, height = (max(1, round(side / ratio)) for side in size)
    return width, height


def squash(size: Size, edge: int) -> Size:
    """Bring both sides to `edge`, whatever the shape (open_clip's `squash`)."""
    return edge, edge


def round_margin(margin: int) -> int:
    """Begin at half the margin, a half going to the even neighbour: torchvision, so OpenAI's CLIP and open_clip.

    Where the picture is smaller (`longest`), the border before it is the thinner one.
    """
    return round(margin / 2) if margin >= 0 else -(-margin // 2)


def floor_margin(margin: int) -> int:
    """Begin at half the margin, a half going down: transformers' CLIPImageProcessor on numpy arrays."""
    return margin // 2


FITS: dict[str, Callable[[Size, int], Size]] = {"shortest": shortest, "longest": longest, "squash": squash}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Describe how a CLIP's pictures are made; the defaults are OpenAI's.

    A picture is resized by `fit` to `edge`, and its centre of `size` x `size` pixels is taken.
    """

    size: int = 224
    edge: int = 224
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD
    resample: Image.Resampling = Image.Resampling.BICUBIC
    fit: Callable[[Size, int], Size] = shortest
    begin: Callable[[int], int] = round_margin

    def levels(self, pictures: Sequence[Picture]) -> UInt8[Tensor, "b 3 {self.size} {self.size}"]:
        """Resize and crop pictures, or files of them. As the references do it, alpha is dropped and EXIF's rotation is
        not applied; grey of sixteen bits is scaled to eight, where they see white.

        Raises ReverieError, naming the file, where one cannot be read.
        """
        rows = [np.asarray(self._cut(as_picture(picture))) for picture in pictures]
        stacked = np.stack(rows) if rows else np.zeros((0, self.size, self.size, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2)

    def normalise(self, levels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Bring levels of 0 to 255 to the mean and deviation that the model was trained with, where the levels are."""
        return normalise(levels, self.mean, self.std)

    def __call__(self, pictures: Sequence[Picture]) -> Float[Tensor, "b 3 {self.size} {self.size}"]:
        """Return the vision tower's input."""
        return self.normalise(self.levels(pictures))

    def describe(self) -> dict[str, object]:
        """Say in plain values what is done: for a key of what was embedded."""
        return {
            "size": self.size,
            "edge": self.edge,
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.resample.name.lower(),
            "fit": self.fit.__name__,
            "begin": self.begin.__name__,
        }

    def _cut(self, picture: Image.Image) -> Image.Image:
        width, height = self.fit(picture.size, self.edge)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), self.resample)
        left, top = self.begin(width - self.size), self.begin(height - self.size)
        if (left, top, width, height) == (0, 0, self.size, self.size):
            return picture
        return picture.crop((left, top, left + self.size, top + self.size))  # black where it reaches beyond


def as_picture(picture: Picture) -> Image.Image:
    """Return an RGB picture as references see it, neither turned nor on white; a path is read. Raises ReverieError."""
    if isinstance(picture, Image.Image):
        return picture if picture.mode == "RGB" else eight_bits(picture).convert("RGB")
    return read_stored(picture).convert("RGB")


def read_preprocessing(raw: Mapping[str, Any], where: str) -> Preprocessing:
    """Translate transformers' preprocessor_config.json. Raises ReverieError for what no CLIP asks for."""
    asked = {key: raw.get(key, True) for key in ("do_resize", "do_rescale", "do_normalize")}
    for key, value in asked.items():
        if value is not True:
            raise ReverieError(f"{where}: {key} is {value!r}, which is not supported; it should be true")
    edge, squashed = _edge(raw.get("size", 224), where)
    size = _edge(raw.get("crop_size", edge), where)[0] if raw.get("do_center_crop", True) else edge
    if size > edge or (not squashed and not raw.get("do_center_crop", True)):
        raise ReverieError(f"{where}: pictures of {edge} pixels cannot be cut to {size}; it should crop the centre")
    return Preprocessing(
        size=size,
        edge=edge,
        mean=_three(raw.get("image_mean", IMAGE_MEAN), where),
        std=_three(raw.get("image_std", IMAGE_STD), where),
        resample=_resample(raw.get("resample", Image.Resampling.BICUBIC), where),
        fit=squash if squashed else shortest,
        begin=floor_margin,
    )


def read_open_clip(raw: Mapping[str, Any], size: int, where: str) -> Preprocessing:
    """Translate the `preprocess_cfg` of open_clip_config.json; its keys are optional. Raises ReverieError."""
    edge = raw.get("size", size)
    fit = raw.get("resize_mode", "shortest")
    if fit not in FITS:
        raise ReverieError(f"{where}: resize_mode is {fit!r}; reverie knows {', '.join(FITS)}")
    edge = edge[0] if isinstance(edge, list) else edge
    if edge != size:
        raise ReverieError(f"{where}: size is {edge!r}, but the vision tower takes pictures of {size} pixels")
    return Preprocessing(
        size=size,
        edge=size,
        mean=_three(raw.get("mean", IMAGE_MEAN), where),
        std=_three(raw.get("std", IMAGE_STD), where),
        resample=_resample(raw.get("interpolation", "bicubic"), where),
        fit=FITS[fit],
    )


def _edge(value: Any, where: str) -> tuple[int, bool]:
    """Read a size in pixels, and whether both sides are meant; old files hold a bare number."""
    squashed = isinstance(value, Mapping) and "height" in value
    if isinstance(value, Mapping):
        sides = {value.get("height"), value.get("width")} if squashed else {value.get("shortest_edge")}
        value = sides.pop() if len(sides) == 1 else None
    if type(value) is not int or value < 1:
        raise ReverieError(f"{where}: a size of pictures is no whole number of pixels, or not square")
    return value, squashed


def _three(value: Any, where: str) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
        raise ReverieError(f"{where}: mean and deviation should be three numbers each, for red, green and blue")
    red, green, blue = value
    return float(red), float(green), float(blue)


def _resample(value: Any, where: str) -> Image.Resampling:
    found = (
        RESAMPLES.get(value) if isinstance(value, str) else next((r for r in RESAMPLES.values() if r == value), None)
    )
    if found is None:
        raise ReverieError(f"{where}: pictures are resized by {value!r}; reverie knows {', '.join(RESAMPLES)}")
    return found


NOTE = "held back by the safety checker"


def screen_pictures(checker: SafetyChecker, pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[bool]]:
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
