"""Masks: which pixels are painted anew and from what; crops, borders and fills of pictures."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageChops, ImageFilter

from reverie.errors import ReverieError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

PAINTED = 128  # a mask at least as light as this is painted: half, as in diffusers
REACHES = (256, 64, 16, 4, 1)  # pixels from which the surroundings flow in, far ones first, near ones over them
GAIN = 16  # makes a colour that flowed in thinly opaque


def from_picture(picture: Image.Image) -> Image.Image:
    """Return the mask that a picture draws: white is painted; where some of it is transparent, what is opaque.

    So a white or a black brush on a transparent sheet both paint. Source: AUTOMATIC1111/stable-diffusion-webui 1.10,
    modules/masking.py and processing.py, create_binary_mask.
    """
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (255, 255):
        return picture.getchannel("A")
    return picture.convert("L")


def transparency(picture: Image.Image) -> Image.Image:
    """Return the mask that paints what is transparent: 255 where nothing is, 0 where the picture is opaque."""
    return picture.convert("RGBA").getchannel("A").point(lambda alpha: 255 - alpha)


def soft(mask: Image.Image, blur: int) -> Image.Image:
    """Soften a mask's edge by a Gaussian of `blur` pixels; it is exactly 0 beyond about three times that."""
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def extend(picture: Image.Image, left: int, right: int, top: int, bottom: int) -> Image.Image:
    """Lay a picture on a transparent one, larger by so many pixels on each side."""
    width, height = picture.size
    canvas = Image.new("RGBA", (left + width + right, top + height + bottom), (0, 0, 0, 0))
    canvas.paste(picture.convert("RGBA"), (left, top))
    return canvas


def fill_from_surroundings(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Let the colours around a mask flow into it, the nearest over the farther ones; what it hides plays no part."""
    known = picture.convert("RGBA")
    known.putalpha(mask.point(lambda light: 0 if light >= PAINTED else 255))
    result = Image.new("RGBA", picture.size, "gray")
    for reach in REACHES:
        flow = known.convert("RGBa").filter(ImageFilter.GaussianBlur(reach)).convert("RGBA")
        flow.putalpha(flow.getchannel("A").point(lambda alpha: min(255, alpha * GAIN)))
        result = Image.alpha_composite(result, flow)
    return Image.alpha_composite(result, known).convert("RGB")


def feather(mask: Image.Image, reach: int) -> Image.Image:
    """Let a mask of what lies beyond a picture's edges fade into the picture, over `reach` pixels from each such edge.

    It is 255 beyond the edges and falls with the square of the distance, as ComfyUI's ImagePadForOutpaint (nodes.py of
    0.3.64).
    """
    box = mask.point(lambda light: 255 if light < PAINTED else 0).getbbox()
    if box is None or not reach:
        return mask
    spans = ((box[1], box[3], mask.height), (box[0], box[2], mask.width))
    down, across = (_fading(span, reach) for span in spans)
    fade = np.maximum(down[:, None], across[None, :])
    return ImageChops.lighter(mask, Image.fromarray((255 * fade).round().astype(np.uint8)))


def _fading(span: tuple[int, int, int], reach: int) -> Float[np.ndarray, " n"]:
    """Return the mask along one axis of a picture from `start` to `end` of `total` pixels."""
    start, end, total = span
    places = np.arange(total) + 0.5
    left = places - start if start > 0 else np.full(total, np.inf)
    right = end - places if end < total else np.full(total, np.inf)
    return np.clip(1 - np.minimum(left, right) / reach, 0, 1) ** 2


def surroundings(mask: Image.Image, padding: int, width: int, height: int) -> Box:
    """Return the box around what a mask paints, with padding, in the shape of width to height where there is room.

    Raises ReverieError where the mask paints nothing.
    """
    box = mask.point(lambda light: 255 if light >= PAINTED else 0).getbbox()
    if box is None:
        raise ReverieError("the mask is dark everywhere, so nothing is painted; make the part to paint white")
    left, top, right, bottom = box
    spans = [(max(left - padding, 0), min(right + padding, mask.width))]
    spans += [(max(top - padding, 0), min(bottom + padding, mask.height))]
    across, down = (end - start for start, end in spans)
    wide, high = max(across, round(down * width / height)), max(down, round(across * height / width))
    (left, right), (top, bottom) = _widen(spans[0], wide, mask.width), _widen(spans[1], high, mask.height)
    return left, top, right, bottom


def _widen(span: tuple[int, int], length: int, most: int) -> tuple[int, int]:
    """Widen a span to a length about its middle, or as far as there is room, shifted to lie within 0 to most."""
    length = min(length, most)
    start = min(max((span[0] + span[1] - length) // 2, 0), most - length)
    return start, start + length
