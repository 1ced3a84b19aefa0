"""Frames of a film, drawn in batches that are cut along the film alone, so that stopping changes nothing.

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
class FrameSpec:
    """One picture of a film: its place on the path, how many frames show it, and what it is drawn over.

    `key` is what a store knows it by. With a `share` it is not drawn: its latents lie that far from those of the
    picture drawn before it to those of the one drawn after.
    """

    key: float
    place: float
    count: int = 1
    share: float | None = None
    under: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class RenderedFrame:
    """The picture of a specification; its clean latents too, "1 c h w", unless it came from a store."""

    spec: FrameSpec
    picture: Image.Image
    latents: Float[Tensor, "1 c h w"] | None = None


def frame_specs(places: Sequence[float], stops: Sequence[int], in_between: int) -> list[FrameSpec]:
    """Turn the places of frames, which never go back, into specifications: a place that frames share is one.

    `stops` are the frames of the keyframes, from which every (1 + in_between)-th frame is drawn, and the last.
    """
    drawn = {len(places) - 1, *stops}
    for begin, end in zip([0, *stops], [*stops, len(places)], strict=True):
        drawn.update(range(begin, end, in_between + 1))
    found: list[FrameSpec] = []
    fixed: dict[float, None] = {places[frame]: None for frame in sorted(drawn) if frame < len(places)}
    for place in places:
        if found and found[-1].key == place:
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            found.append(FrameSpec(place, place, share=None if place in fixed else 0.0))
    return _share_gaps(found)


def _share_gaps(found: Sequence[FrameSpec]) -> list[FrameSpec]:
    """Say how far each spec that is not drawn lies between those that are."""
    result, before = [], 0.0
    after = [spec.place for spec in found if spec.share is None]
    reached = 0
    for spec in found:
        if spec.share is None:
            before, reached = spec.place, reached + 1
            result.append(spec)
        else:
            result.append(replace(spec, share=(spec.place - before) / (after[reached] - before)))
    return result


def cuts(specs: Iterable[FrameSpec], group: Callable[[float], Hashable], batch: int) -> Iterator[list[FrameSpec]]:
    """Cut frames into batches of at most `batch` that are drawn, all of one group; each ends with one that is drawn.

    Lazy: reads no farther than one batch and a spec.
    """
    cut: list[FrameSpec] = []
    waiting: list[FrameSpec] = []
    drawn, last = 0, None
    for spec in specs:
        waiting.append(spec)
        if spec.share is not None:
            continue
        own = group(spec.place)
        if cut and (own != last or drawn == batch):
            yield cut
            cut, drawn = [], 0
        cut, waiting, drawn, last = cut + waiting, [], drawn + 1, own
    if cut:
        yield cut


@dataclass(frozen=True, eq=False)
class FrameRenderer:
    """Render frames in order: from the store where they are there, else drawn along the path, batch by batch."""

    path: Path
    batch: int
    store: Store | None = None

    def render(self, specs: Iterable[FrameSpec]) -> Iterator[RenderedFrame]:
        """Yield the picture of each spec; holds those of a batch alone.

        A picture that is in the store stays as it is there, also where the rest of its batch is drawn again.
        """
        previous: list[FrameSpec] = []
        last: Tensor | None = None
        for cut in cuts(specs, self.path.group, self.batch):
            found = self._from_store(cut)
            if len(found) == len(cut):
                last = None
                yield from (RenderedFrame(spec, found[spec.key]) for spec in cut)
            else:
                if cut[0].share is not None and last is None:
                    last = self._draw(previous)[-1:]
                latents = list(self._latents(cut, last))
                yield from self._decode(cut, latents, found)
                last = latents[-1]
            previous = cut

    def _from_store(self, cut: Sequence[FrameSpec]) -> dict[float, Image.Image]:
        if self.store is None:
            return {}
        found = {spec.key: self.store.get(spec.key) for spec in cut}
        return {key: picture for key, picture in found.items() if picture is not None}

    def _decode(
        self, cut: Sequence[FrameSpec], latents: Sequence[Tensor], found: dict[float, Image.Image]
    ) -> list[RenderedFrame]:
        shown = []
        for spec, z in zip(cut, latents, strict=True):
            picture = found[spec.key] if spec.key in found else self.path.codec.pictures(z)[0]
            shown.append(RenderedFrame(spec, picture, z))
        if self.store is not None:
            self.store.put({one.spec.key: one.picture for one in shown if one.spec.key not in found})
        return shown

    def _draw(self, cut: Sequence[FrameSpec]) -> Float[Tensor, "b c h w"]:
        own = [spec for spec in cut if spec.share is None]
        return self.path.draw([spec.place for spec in own], [spec.under for spec in own if spec.under is not None])

    def _latents(self, cut: Sequence[FrameSpec], last: Tensor | None) -> Iterator[Float[Tensor, "1 c h w"]]:
        """Give the latents of every spec of a batch; `last` are those of the picture drawn before it."""
        rows = iter(self._draw(cut).split(1))
        before, after = last, next(rows)
        for spec in cut:
            if spec.share is None:
                yield after
                before, after = after, next(rows, after)
            else:
                assert before is not None  # the first picture of a film is drawn
                yield _between(before, after, spec.share)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Interpolate latents along a great circle, so that what lies between is as crisp as they are."""
    return slerp(a, b, share) if not torch.equal(a, b) else a
