"""Perceptual pacing: frames placed at equal distances as seen, so that the picture changes at constant speed.

Even places on the path are not even to the eye: between a bear and an apple most of the way shows a bear, and then
everything happens within a few frames. Here a film's steps are measured by a distance between pictures, and its frames
moved to where the length of the way, as measured, is cut into equal parts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reverie.codecs.image import to_tensor
from reverie.errors import ReverieError
from reverie.models.lpips import LPIPS

Picture = TypeVar("Picture")
Distance = Callable[[Picture, Picture], float]
"""How different two pictures look: 0 for the same, rising. LPIPS, an angle between CLIP features, any other."""

Floats = NDArray[np.float64]

EVEN = 1.5  # times the median that the largest step may be
ROUNDS = 16
COARSE = 12  # steps that the first round measures at least; each further round doubles them until all are there
STILL = 1e-4  # of the mean step: what a step counts at least, so that frames of a still part keep their order
ALIKE = 0.25  # how alike two neighbouring steps must be to tell how distances add up
NARROW = 1e-7  # of the path: a step that is too long and goes no farther is a jump, which no frame can bridge


@dataclass(frozen=True)
class Pace:
    """Hold where the frames of a film stand, and the measured distance from each to the next.

    `jumps` are places where the picture jumps however closely it is looked at. `drawn` counts the pictures that were
    drawn to find the places, the film's own among them.
    """

    places: tuple[float, ...]
    steps: tuple[float, ...]
    jumps: tuple[float, ...]
    drawn: int

    @property
    def unevenness(self) -> float:
        """Return the largest step in medians: 1 is perfectly even; infinite where most of the film stands still."""
        return unevenness(self.steps)


def unevenness(steps: Sequence[float]) -> float:
    """Return the largest of some steps in medians; 1 where none moves, infinite where more than half stand still."""
    largest, median = max(steps), float(np.median(steps))
    if largest == 0:
        return 1.0
    return largest / median if median > 0 else float("inf")


def uniform(knots: Sequence[float], count: int) -> tuple[float, ...]:
    """Place `count` frames evenly along the path, one of them on each knot; the steps differ where that takes it."""
    _check(knots, count)
    return tuple(_cut(_Way.straight(knots), knots, count - 1).tolist())


def pace(
    render: Callable[[Sequence[float]], Iterable[Picture]],
    knots: Sequence[float],
    count: int,
    distance: Distance[Picture],
    *,
    tolerance: float = EVEN,
    rounds: int = ROUNDS,
) -> Pace:
    """Place `count` frames so that neighbours differ alike: the largest step at most `tolerance` medians.

    `knots` are rising places that frames must stand on, the keyframes, first and last among them. `render` draws the
    pictures of rising places, one by one: it is asked once a round, and no more than three are held. Early rounds draw
    fewer frames than the film has. Where a picture jumps, no placing is even: the frames beside the jump are, and after
    so many rounds the best is returned. Raises ReverieError for fewer frames than knots.

    This is equidistribution (de Boor 1974) in a measured length. The distance may grow as the change, as an angle
    between features does, or faster, up to its square, as LPIPS: `_power` finds out which.
    """
    _check(knots, count)
    coarse = min(count - 1, max(COARSE, len(knots) - 1))
    way, steps, jumps, drawn = _Way.straight(knots), coarse, np.empty(0), 0
    best, least = None, np.inf
    for turn in range(rounds):
        steps = count - 1 if turn == rounds - 1 else steps
        places = _cut(way, knots, steps)
        measured, doubles = _measure(render(places.tolist()), distance)
        drawn += len(places)
        found = _jumps(places, measured, tolerance * sum(measured) / (count - 1))
        jumps = np.union1d(jumps, found)
        over = np.diff(np.searchsorted(jumps, places)) > 0
        smooth = _limit_jumps(measured, over)
        if steps == count - 1 and (best is None or unevenness(smooth) < least):
            best, least = (places, measured), unevenness(smooth)
        if least <= tolerance:
            break
        if found.size:  # all that was learnt of the way was learnt of the jump: begin anew, knowing of it
            way, steps = _Way.straight(knots), coarse
        else:
            way = way.remeasure(places, np.array(smooth) ** (1 / _power(measured, doubles)), over)
            steps = min(count - 1, 2 * steps)
    assert best is not None  # the last round draws all frames
    return Pace(tuple(best[0].tolist()), tuple(best[1]), tuple(jumps.tolist()), drawn)


def _jumps(places: Floats, steps: Sequence[float], longest: float) -> Floats:
    """Find where the picture jumps: the middles of steps above the `longest`, however narrow they are."""
    narrow = np.diff(places) < NARROW * (places[-1] - places[0])
    return ((places[:-1] + places[1:]) / 2)[narrow & (np.array(steps) > longest)]


def _limit_jumps(steps: Sequence[float], over: NDArray[np.bool_]) -> list[float]:
    """Count a step over a jump as no more than the median of the others."""
    if over.all() or not over.any():
        return list(steps)
    others = float(np.median(np.array(steps)[~over]))
    return [min(step, others) if jump else step for step, jump in zip(steps, over, strict=True)]


@dataclass(frozen=True, eq=False)
class _Way:
    """Hold the length of the way up to each of some rising places; in between it grows evenly."""

    places: Floats
    lengths: Floats

    @staticmethod
    def straight(knots: Sequence[float]) -> _Way:
        places = np.array(knots, dtype=np.float64)
        return _Way(places, places - places[0])

    def length(self, places: Floats) -> Floats:
        return np.interp(places, self.places, self.lengths)

    def place(self, lengths: Floats) -> Floats:
        return np.interp(lengths, self.lengths, self.places)

    def remeasure(self, places: Floats, steps: Floats, over: NDArray[np.bool_]) -> _Way:
        """Give each step between `places` its measured length, and keep how the length grows within it.

        Within a step `over` a jump it is taken to grow evenly: what is known of it is the jump.
        """
        steps = np.maximum(steps, STILL * steps.mean() or 1.0)
        sums = np.concatenate([[0.0], np.cumsum(steps)])
        inner = self.places[1:-1]
        known = inner[~over[np.searchsorted(places, inner, side="right") - 1]]
        points = np.union1d(known, places)
        return _Way(points, np.interp(self.length(points), self.length(places), sums))


def _cut(way: _Way, knots: Sequence[float], steps: int) -> Floats:
    """Cut the way into equal lengths, from knot to knot; a longer part gets more of the steps."""
    ends = way.length(np.array(knots, dtype=np.float64))
    shares = _shares(np.diff(ends), steps)
    parts = [np.linspace(a, b, share + 1)[:-1] for (a, b), share in zip(pairwise(ends), shares, strict=True)]
    places = way.place(np.concatenate([*parts, ends[-1:]]))
    places[np.concatenate([[0], np.cumsum(shares)])] = knots  # to the bit, whatever interpolation rounds
    return places


def _shares(lengths: Floats, steps: int) -> list[int]:
    """Share steps out among parts of the way, at least one each, so that the longest step is as short as can be."""
    shares = np.ones(len(lengths), dtype=np.int64)
    for _ in range(steps - len(lengths)):
        shares[np.argmax(lengths / shares)] += 1
    return [int(share) for share in shares]


def _measure(pictures: Iterable[Picture], distance: Distance[Picture]) -> tuple[list[float], list[float]]:
    """Measure the distances between neighbours, and between each picture and the next but one."""
    steps, doubles = [], []
    before = last = None
    for picture in pictures:
        if last is not None:
            steps.append(float(distance(last, picture)))
        if before is not None:
            doubles.append(float(distance(before, picture)))
        before, last = last, picture
    return steps, doubles


def _power(steps: Sequence[float], doubles: Sequence[float]) -> float:
    """Tell with which power of the change a distance grows, from 1 to 2, by what two steps in a row come to.

    Two equal steps in one direction make twice the distance where it is a length, and four times where it is a square.
    On a way that bends they make less: then, too, it is taken for a length.
    """
    found = [
        np.log2(double / max(a, b))
        for (a, b), double in zip(pairwise(steps), doubles, strict=True)
        if double > 0 and min(a, b) > ALIKE * max(a, b)
    ]
    return float(np.clip(np.median(found), 1, 2)) if found else 1.0


def _check(knots: Sequence[float], count: int) -> None:
    if len(knots) < 2 or any(a >= b for a, b in pairwise(knots)):
        raise ReverieError(f"places {list(knots)} do not rise; give two or more, each above the one before")
    if count < len(knots):
        raise ReverieError(f"{count} frames do not reach {len(knots)} keyframes; give at least {len(knots)}")


REMEMBERED = 4  # pictures whose features are kept: pacing compares each with the two before it

Embed = Callable[[Sequence[Image.Image]], Float[Tensor, "n d"]]
"""Pictures to features, such as `Clip.embed_images`."""


def angle(embed: Embed) -> Distance[Image.Image]:
    """Measure the angle between two pictures' features, in radians, from 0 to pi: `angle(clip.embed_images)`.

    Half the angle is found by its sine: the cosine of a small angle is all but 1, and would tell little of it.
    """
    seen = _memoize(lambda picture: embed([picture])[0].double())

    def distance(a: Image.Image, b: Image.Image) -> float:
        x, y = (torch.nn.functional.normalize(seen(picture), dim=0) for picture in (a, b))
        return 2 * math.asin(min(1.0, (x - y).norm().item() / 2))

    return distance


def lpips(model: LPIPS) -> Distance[Image.Image]:
    """Measure LPIPS, with the user's weights: `lpips(LPIPS.load(vgg, lins))`."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def distance(a: Image.Image, b: Image.Image) -> float:
        x, y = (to_tensor([picture]).to(device) for picture in (a, b))
        return float(model(x, y))

    return distance


def _memoize(features: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
    """Compute the features of a picture once for as long as it is among the latest asked for."""
    latest: deque[tuple[Image.Image, Tensor]] = deque(maxlen=REMEMBERED)

    def lookup(picture: Image.Image) -> Tensor:
        for known, value in latest:
            if known is picture:
                return value
        latest.append((picture, features(picture)))
        return latest[-1][1]

    return lookup
