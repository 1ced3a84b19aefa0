"""Which pixels are painted anew, and from what? Masks, crops, borders and fills of pictures, without torch."""

from __future__ import annotations

from PIL import Image, ImageFilter

from reverie.errors import ReverieError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

PAINTED = 128  # a mask at least as light as this is painted: half, as in diffusers
REACHES = (256, 64, 16, 4, 1)  # pixels from which the surroundings flow in, far ones first, near ones over them
GAIN = 16  # makes a colour that flowed in thinly opaque


def on_white(picture: Image.Image) -> Image.Image:
    """Lay a picture on white, without transparency."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def transparency(picture: Image.Image) -> Image.Image:
    """Return the mask that paints what is transparent: 255 where nothing is, 0 where the picture is opaque."""
    return picture.convert("RGBA").getchannel("A").point(lambda alpha: 255 - alpha)


def soft(mask: Image.Image, blur: int) -> Image.Image:
    """Soften a mask's edge by a Gaussian of `blur` pixels; it is exactly 0 beyond about three times that."""
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def extended(picture: Image.Image, left: int, right: int, top: int, bottom: int) -> Image.Image:
    """Lay a picture on a larger transparent one."""
    width, height = picture.size
    canvas = Image.new("RGBA", (left + width + right, top + height + bottom), (0, 0, 0, 0))
    canvas.paste(picture.convert("RGBA"), (left, top))
    return canvas


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Let the colours around a mask flow into it, the nearest over the farther ones."""
    known = picture.convert("RGBA")
    known.putalpha(mask.point(lambda light: 0 if light >= PAINTED else 255))
    result = Image.new("RGBA", picture.size, "gray")
    for reach in REACHES:
        flow = known.convert("RGBa").filter(ImageFilter.GaussianBlur(reach)).convert("RGBA")
        flow.putalpha(flow.getchannel("A").point(lambda alpha: min(255, alpha * GAIN)))
        result = Image.alpha_composite(result, flow)
    return Image.alpha_composite(result, known).convert("RGB")


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
    (left, right), (top, bottom) = _widened(spans[0], wide, mask.width), _widened(spans[1], high, mask.height)
    return left, top, right, bottom


def _widened(span: tuple[int, int], length: int, most: int) -> tuple[int, int]:
    """Widen a span to a length about its middle, or as far as there is room, shifted to lie within 0 to most."""
    length = min(length, most)
    start = min(max((span[0] + span[1] - length) // 2, 0), most - length)
    return start, start + length
