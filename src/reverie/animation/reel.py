"""In which batches are the pictures of a film drawn? Cut along the film alone, so that stopping changes nothing.

A batch is the same whatever is at hand already: kernels sum in another order for another batch, and a film that goes on
after a break is to be the unbroken one to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.animation.path import Path
from reverie.animation.store import Store
from reverie.diffusion.noise import slerp


@dataclass(frozen=True, eq=False)
class Shot:
    """Name one picture: its place on the path, how many frames show it, and what it is drawn over.

    `key` is what a store knows it by. With a `share` it is not drawn: its latents lie that far from those of the
    picture drawn before it to those of the one drawn after.
    """

    key: float
    place: float
    shown: int = 1
    share: float | None = None
    under: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """Hold the picture of a shot; its clean latents too, "1 c h w", unless it came from a store."""

    shot: Shot
    picture: Image.Image
    latents: Float[Tensor, "1 c h w"] | None = None


def shots(places: Sequence[float], stops: Sequence[int], in_between: int) -> list[Shot]:
    """Turn the places of frames, which never go back, into shots: a place that frames share is one.

    `stops` are the frames of the keyframes, from which every (1 + in_between)-th frame is drawn, and the last.
    """
    drawn = {len(places) - 1, *stops}
    for begin, end in zip([0, *stops], [*stops, len(places)], strict=True):
        drawn.update(range(begin, end, in_between + 1))
    found: list[Shot] = []
    fixed: dict[float, None] = {places[frame]: None for frame in sorted(drawn) if frame < len(places)}
    for place in places:
        if found and found[-1].key == place:
            found[-1] = replace(found[-1], shown=found[-1].shown + 1)
        else:
            found.append(Shot(place, place, share=None if place in fixed else 0.0))
    return _shared(found)


def _shared(found: Sequence[Shot]) -> list[Shot]:
    """Say how far each shot that is not drawn lies between those that are."""
    result, before = [], 0.0
    after = [shot.place for shot in found if shot.share is None]
    reached = 0
    for shot in found:
        if shot.share is None:
            before, reached = shot.place, reached + 1
            result.append(shot)
        else:
            result.append(replace(shot, share=(shot.place - before) / (after[reached] - before)))
    return result


def cuts(reel: Iterable[Shot], group: Callable[[float], Hashable], batch: int) -> Iterator[list[Shot]]:
    """Cut shots into batches of at most `batch` that are drawn, all of one group; each ends with one that is drawn.

    Lazy: reads no farther than one batch and a shot.
    """
    cut: list[Shot] = []
    waiting: list[Shot] = []
    drawn, last = 0, None
    for shot in reel:
        waiting.append(shot)
        if shot.share is not None:
            continue
        own = group(shot.place)
        if cut and (own != last or drawn == batch):
            yield cut
            cut, drawn = [], 0
        cut, waiting, drawn, last = cut + waiting, [], drawn + 1, own
    if cut:
        yield cut


@dataclass(frozen=True, eq=False)
class Projector:
    """Show shots in order: from the store where they are there, else drawn along the path, batch by batch."""

    path: Path
    batch: int
    store: Store | None = None

    def show(self, reel: Iterable[Shot]) -> Iterator[Shown]:
        """Yield the picture of each shot; holds those of a batch alone.

        A picture that is in the store stays as it is there, also where the rest of its batch is drawn again.
        """
        previous: list[Shot] = []
        last: Tensor | None = None
        for cut in cuts(reel, self.path.group, self.batch):
            found = self._found(cut)
            if len(found) == len(cut):
                last = None
                yield from (Shown(shot, found[shot.key]) for shot in cut)
            else:
                if cut[0].share is not None and last is None:
                    last = self._drawn(previous)[-1:]
                latents = list(self._latents(cut, last))
                yield from self._developed(cut, latents, found)
                last = latents[-1]
            previous = cut

    def _found(self, cut: Sequence[Shot]) -> dict[float, Image.Image]:
        if self.store is None:
            return {}
        found = {shot.key: self.store.get(shot.key) for shot in cut}
        return {key: picture for key, picture in found.items() if picture is not None}

    def _developed(
        self, cut: Sequence[Shot], latents: Sequence[Tensor], found: dict[float, Image.Image]
    ) -> list[Shown]:
        shown = []
        for shot, z in zip(cut, latents, strict=True):
            picture = found[shot.key] if shot.key in found else self.path.codec.pictures(z)[0]
            shown.append(Shown(shot, picture, z))
        if self.store is not None:
            self.store.put({one.shot.key: one.picture for one in shown if one.shot.key not in found})
        return shown

    def _drawn(self, cut: Sequence[Shot]) -> Float[Tensor, "b c h w"]:
        own = [shot for shot in cut if shot.share is None]
        return self.path.draw([shot.place for shot in own], [shot.under for shot in own if shot.under is not None])

    def _latents(self, cut: Sequence[Shot], last: Tensor | None) -> Iterator[Float[Tensor, "1 c h w"]]:
        """Give the latents of every shot of a batch; `last` are those of the picture drawn before it."""
        rows = iter(self._drawn(cut).split(1))
        before, after = last, next(rows)
        for shot in cut:
            if shot.share is None:
                yield after
                before, after = after, next(rows, after)
            else:
                assert before is not None  # the first picture of a film is drawn
                yield _between(before, after, shot.share)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Interpolate latents along a great circle, so that what lies between is as crisp as they are."""
    return slerp(a, b, share) if not torch.equal(a, b) else a
