"""ControlNet hints that need no network: Canny edges, soft ones, lines, scribbles, and the blurred picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from reverie.errors import ReverieError
from reverie.media.pictures import to_rgb

Plane = np.ndarray
"""One number a pixel, [h, w] float32."""

# The luma of ITU-R BT.601, by which pictures have been made grey since television.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# The four directions that a gradient is rounded to, as (down, right): from the neighbour behind to the one ahead.
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))


def canny(picture: Image.Image, low: float = 100.0, high: float = 200.0, sigma: float = 1.0) -> Image.Image:
    """Draw the edges white on black, one pixel wide (Canny 1986, "A Computational Approach to Edge Detection").

    A ridge of the gradient is an edge where it rises above `high`, and on from there while it stays above `low`; both
    are in the units of OpenCV, the Sobel filter's answer to levels of 0 to 255. `sigma`, in pixels, is how far the grey
    picture is gaussian before. Raises ReverieError where the thresholds are not in order.
    """
    if not 0 <= low <= high:
        raise ReverieError(f"thresholds {low:g} and {high:g} are not in order; give 0 <= low <= high")
    down, right = sobel(gaussian(luma(picture), sigma))
    strength = np.hypot(down, right)
    ridge = strength * _is_ridge(strength, down, right)
    edges = hysteresis(ridge > low, ridge > high)
    return Image.fromarray(edges.astype(np.uint8) * 255).convert("RGB")


def lineart(picture: Image.Image, sigma: float = 1.0, gain: float = 12.0) -> Image.Image:
    """Draw the lines white on black, soft: where a picture is darker than its surroundings.

    It is the difference of two Gaussians, of `sigma` and 1.6 times that (Marr and Hildreth 1980), times `gain`.
    """
    levels = luma(picture)
    lines = gain * (gaussian(levels, 1.6 * sigma) - gaussian(levels, sigma))
    return Image.fromarray(lines.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def scribble(picture: Image.Image, threshold: float = 16.0) -> Image.Image:
    """Draw thick strokes white on black, where every colour is darker than around by more than `threshold`.

    It is the difference of Gaussians of 0.5 and 5 pixels, the least of all colours: "scribble_xdog" of ControlNet's
    annotators (after Winnemoeller et al. 2012, XDoG), whose threshold is twice this one.
    """
    colours = np.moveaxis(np.asarray(to_rgb(picture), dtype=np.float32), 2, 0)
    depth = np.min([gaussian(colour, 0.5) - gaussian(colour, 5.0) for colour in -colours], axis=0)
    return Image.fromarray((depth > threshold).astype(np.uint8) * 255).convert("RGB")


def softedge(picture: Image.Image, sigma: float = 2.0) -> Image.Image:
    """Draw the edges as bright as they are steep, for soft-edge ControlNets, whose own hint is a network's (HED).

    It is Sobel's answer to the picture blurred by `sigma` pixels, 255 where it is steepest.
    """
    strength = np.hypot(*sobel(gaussian(luma(picture), sigma)))
    scaled = strength * (255 / max(float(strength.max()), 1.0))
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")


def blur(picture: Image.Image, sigma: float = 6.0) -> Image.Image:
    """Take the detail away and leave the colours, as the hint of a tile ControlNet."""
    return to_rgb(picture).filter(ImageFilter.GaussianBlur(sigma))


def luma(picture: Image.Image) -> Plane:
    """Weigh red, green and blue into levels of 0 to 255."""
    return np.asarray(to_rgb(picture), dtype=np.float32) @ LUMA


def gaussian(plane: Plane, sigma: float) -> Plane:
    """Convolve with a Gaussian cut off at four deviations; beyond the border the outermost pixels go on."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return plane
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    along = partial(np.convolve, v=(kernel / kernel.sum()).astype(np.float32), mode="valid")
    padded = np.pad(plane, radius, mode="edge")
    return np.apply_along_axis(along, 0, np.apply_along_axis(along, 1, padded))


def sobel(plane: Plane) -> tuple[Plane, Plane]:
    """Return the gradient downwards and to the right, by Sobel's filters (eight times the slope)."""
    padded = np.pad(plane, 1, mode="edge")
    height, width = plane.shape

    def at(down: int, right: int) -> Plane:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    down = at(1, -1) + 2 * at(1, 0) + at(1, 1) - at(-1, -1) - 2 * at(-1, 0) - at(-1, 1)
    right = at(-1, 1) + 2 * at(0, 1) + at(1, 1) - at(-1, -1) - 2 * at(0, -1) - at(1, -1)
    return down, right


def _is_ridge(strength: Plane, down: Plane, right: Plane) -> np.ndarray:
    """Tell where the strength is above both neighbours along the gradient; of two that are equal the first is kept."""
    padded = np.pad(strength, 1)
    height, width = strength.shape
    # Eighths of a turn, rounded; opposite gradients cross the same edge.
    sector = np.round(np.arctan2(down, right) * (4 / np.pi)).astype(int) % 4
    ridge = np.zeros(strength.shape, dtype=bool)
    for index, (dy, dx) in enumerate(DIRECTIONS):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        ridge |= (sector == index) & (strength >= ahead) & (strength > behind)
    return ridge


def hysteresis(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Keep what is weak and hangs together with something strong, over sides and corners."""
    padded = np.pad(weak, 1)
    width = padded.shape[1]
    steps = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])
    left = padded.ravel()
    found = np.zeros_like(left)
    front = np.flatnonzero(np.pad(strong, 1))
    while front.size:
        found[front], left[front] = True, False
        reached = np.unique(front[:, None] + steps)
        front = reached[left[reached]]
    return found.reshape(padded.shape)[1:-1, 1:-1]


PREPROCESSORS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "lineart": lineart,
    "blurred": blur,
    "scribble": scribble,
    "softedge": softedge,
}
