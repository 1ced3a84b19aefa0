"""From a request to a film: its frames' places are found, drawn in batches, and yielded one by one.

Batches are cut along the film alone, whatever is at hand already: kernels sum in another order for another batch, and a
film that goes on after a break is to be the unbroken one to the bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path as FilePath

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.animation.blend import fit_picture
from reverie.animation.pacing import Distance
from reverie.animation.path import Path, prepare_path, shared_request
from reverie.animation.store import FrameStore, Store
from reverie.animation.timeline import Timeline, by_sight, by_sound, frames_in, order, source_pictures, timeline
from reverie.diffusion.noise import slerp
from reverie.errors import ReverieError
from reverie.generate.conditioning import adapter_notes, follow_recommended
from reverie.generate.modified import Modification, in_turn, modify
from reverie.generate.notes import model_limits
from reverie.media import footage
from reverie.media.encoder import Waveform
from reverie.media.footage import Footage
from reverie.progress import Progress
from reverie.requests.films import Animation
from reverie.requests.pictures import TextToImage
from reverie.system import StableDiffusion


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


BATCH = 4


@dataclass(frozen=True, eq=False)
class Frame(Progress):
    """One frame of a film: its `index` of `total`, its place on the path, and the second at which it is shown.

    The place k is the k-th keyframe. `latents`, clean and scaled, are None for a frame that was drawn before.
    """

    place: float
    time: float
    picture: Image.Image
    latents: Float[Tensor, "1 c h w"] | None = None


@dataclass(frozen=True, eq=False)
class _Film:
    """Hold what is known of a film before anything is drawn."""

    animation: Animation
    size: tuple[int, int]
    timeline: Timeline
    places: tuple[float, ...]
    source: Footage | None = None
    notes: tuple[str, ...] = ()

    @property
    def order(self) -> list[int]:
        return order(self.timeline.count, self.animation.ping_pong, self.animation.loop)

    @property
    def revisits(self) -> bool:
        """Tell whether pictures are shown again after others."""
        return self.animation.pace == "perceptual" or self.animation.ping_pong


def animate(
    system: StableDiffusion,
    animation: Animation,
    *,
    distance: Distance[Image.Image] | None = None,
    store: Store | None = None,
    heard: Waveform | None = None,
    batch: int = BATCH,
) -> Iterator[Frame]:
    """Draw a film and yield its frames in order; closing the generator stops the work.

    It holds a batch of pictures at a time, `batch` of them drawn together. `store` keeps what was drawn, so that the
    same film goes on from there, to the bit; without one a film that shows pictures again keeps them in a temporary
    folder. `distance` tells how different two pictures look, which a perceptual pace needs; it draws the film several
    times over before its first frame comes. `heard` is the sound of `animation.audio`, where it has been read already.

    Keyframes without pictures are, where the anchor is 0, what `text_to_image` draws of their prompt and seed: on the
    CPU to the bit, as they are drawn alone. Drawings of one model take turns, see `generate.modified`. Raises
    ReverieError, before any work, for sizes, sounds and films that do not fit.
    """
    if batch < 1:
        raise ReverieError(f"batches of {batch} pictures are not possible; give 1 or more")
    if animation.pace == "perceptual" and distance is None:
        raise ReverieError("a perceptual pace needs to know how different pictures look; give a distance")
    film = _plan_film(system, follow_recommended(system, animation), heard)
    request = shared_request(film.animation, film.size)
    film = replace(film, notes=(*adapter_notes(system, animation), *model_limits(animation, system)))
    return in_turn(modify(system, request), partial(_frames, system, film, request, distance, store, batch))


def _lay_out(animation: Animation, heard: Waveform | None) -> tuple[Timeline, Waveform | None, Footage | None]:
    """Lay the film's way out in time; return the sound and the film that tell how long it is, too."""
    if animation.audio is not None and heard is None:
        from reverie.media import sound  # brings soundfile

        heard = sound.read(animation.audio.file())
    source = None if animation.init_video is None else footage.read(animation.init_video.file())
    lasting = None
    if source is not None:
        count = source.count or sum(1 for _ in source.pictures())
        lasting = frames_in(count, source.fps or animation.fps, animation.fps)
    elif heard is not None:
        lasting = max(1, round(heard.samples.shape[-1] / heard.rate * animation.fps))
    return timeline(animation, lasting), heard, source


def _plan_film(system: StableDiffusion, animation: Animation, heard: Waveform | None) -> _Film:
    """Find size, frames and places, but for those that only drawing tells."""
    laid, heard, source = _lay_out(animation, heard)
    size = _size(system, animation, source)
    names = [keyframe.easing or animation.easing for keyframe in animation.keyframes]
    places = laid.places(names)
    if heard is not None and len(laid.stops) > 1:
        places = by_sound(laid, animation.fps, heard, animation.drive, animation.smooth)
    return _Film(animation, size, laid, places, source)


def _size(system: StableDiffusion, animation: Animation, source: Footage | None) -> tuple[int, int]:
    """Return the film's size: as asked, else its first picture's in whole latents, else the model's own.

    Raises ReverieError for one that does not fit the model, and for pictures of another where no fit is chosen.
    """
    images = [keyframe.image.image() for keyframe in animation.keyframes if keyframe.image is not None]
    sizes = [image.size for image in images] + ([source.size] if source is not None else [])
    factor = system.codec.factor
    own = tuple(max(1, side // factor) * factor for side in sizes[0]) if sizes else (system.size, system.size)
    size = (animation.width or own[0], animation.height or own[1])
    system.codec.latent_shape(*size)
    for image in images:
        fit_picture(image, size, animation.fit)
    if source is not None:
        fit_picture(Image.new("RGB", source.size), size, animation.fit)
    return size


def _frames(
    system: StableDiffusion,
    film: _Film,
    request: TextToImage,
    distance: Distance[Image.Image] | None,
    store: Store | None,
    batch: int,
    _: Modification,
) -> Iterator[Frame]:
    with ExitStack() as stack:
        path = prepare_path(system, film.animation, request)
        if store is None and film.revisits:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="reverie-"))
            store = stack.enter_context(FrameStore(FilePath(folder) / "frames"))
        renderer = FrameRenderer(path, batch, store)
        if film.source is not None:
            specs: Iterable[FrameSpec] = _specs_over(film, film.source)
            yield from _frames_of(film, renderer.render(specs))
            return
        places = film.places
        if film.animation.pace == "perceptual" and distance is not None:
            timed = film.animation.keyframes[0].time is not None
            places = by_sight(film.timeline, partial(_render_places, renderer, film), distance, timed=timed)
        specs = frame_specs(places, film.timeline.stops[: len(film.animation.keyframes)], film.animation.in_between)
        back = _way_back(renderer, specs, [places[frame] for frame in film.order[len(places) :]])
        yield from _frames_of(film, chain(renderer.render(specs), back))


def _frames_of(film: _Film, pictures: Iterable[RenderedFrame]) -> Iterator[Frame]:
    """Show each picture for as many frames as it holds."""
    index, total = 0, len(film.order)
    for shown in pictures:
        for _ in range(shown.spec.count):
            place, time = shown.spec.place, index / film.animation.fps
            notes = () if index else film.notes
            yield Frame(index + 1, total, "frames", place, time, shown.picture, shown.latents, notes=notes)
            index += 1


def _way_back(renderer: FrameRenderer, specs: Sequence[FrameSpec], places: Sequence[float]) -> Iterator[RenderedFrame]:
    """Show pictures of the way there again, one for each frame of the way back."""
    latest: RenderedFrame | None = None
    for place in places:
        if latest is None or latest.spec.key != place:
            picture = renderer.store.get(place) if renderer.store is not None else None
            spec = FrameSpec(place, place)
            if picture is not None:
                latest = RenderedFrame(spec, picture)
            else:  # its file was damaged since: the way there is gone through once more
                again = next(shown for shown in renderer.render(specs) if shown.spec.key == place)
                latest = RenderedFrame(spec, again.picture, again.latents)
        yield latest


def _render_places(renderer: FrameRenderer, film: _Film, places: Sequence[float]) -> Iterator[Image.Image]:
    """Show places that pacing asks for; the end of a closed way is its first keyframe."""
    end = len(film.timeline.stops) - 1 if film.timeline.closed else None
    own = (0.0 if place == end else float(place) for place in places)
    return (shown.picture for shown in renderer.render(FrameSpec(place, place) for place in own))


def _specs_over(film: _Film, source: Footage) -> Iterator[FrameSpec]:
    """Name the frames of a film that is drawn over another: frames of one picture and one place are one spec."""
    fit = partial(fit_picture, size=film.size, fit=film.animation.fit)
    fps = film.animation.fps  # a folder of pictures has no rate of its own
    pictures = source_pictures(source.pictures(), source.fps or fps, fps, film.timeline.count, fit)
    held: list[tuple[int, float, Image.Image]] = []
    for frame, (place, under) in enumerate(zip(film.places, pictures, strict=True)):
        if held and (held[0][1] != place or held[0][2] is not under):
            yield _merge_specs(held)
            held = []
        held.append((frame, place, under))
    yield _merge_specs(held)


def _merge_specs(held: Sequence[tuple[int, float, Image.Image]]) -> FrameSpec:
    frame, place, under = held[0]
    return FrameSpec(float(frame), place, count=len(held), under=under)
