"""The timeline of a film: on which frame each keyframe stands, where on the path each frame is, what lies under it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image

from reverie.animation.beat import beat_places
from reverie.animation.pacing import Distance, pace
from reverie.errors import ReverieError
from reverie.media.encoder import Waveform
from reverie.requests.easing import EASINGS

if TYPE_CHECKING:
    from reverie.requests.films import Animation


SECONDS = 2.0  # between two keyframes, where nothing says how long the film is


@dataclass(frozen=True)
class Timeline:
    """Hold the frame that each keyframe stands on, and how many frames there are, on the way there alone.

    In a closed film the first keyframe stands once more at the end, on the frame after the last: `stops[-1] == count`.
    """

    stops: tuple[int, ...]
    count: int

    @property
    def closed(self) -> bool:
        """Tell whether the way leads back to the first keyframe."""
        return self.stops[-1] == self.count

    def places(self, easings: Sequence[str]) -> tuple[float, ...]:
        """Return the place on the path of each frame: k on the k-th keyframe, and between two as its easing says.

        Before its first keyframe and after its last the film stands.
        """
        found = [0.0] * min(self.stops[0], self.count)
        for segment, (begin, end) in enumerate(pairwise(self.stops)):
            easing = EASINGS[easings[segment]]  # type: ignore[index]
            found += [segment + easing(frame / (end - begin)) for frame in range(end - begin)]
        last = float(len(self.stops) - 1)
        return tuple((found + [last] * (self.count - len(found)))[: self.count])


def timeline(animation: Animation, lasting: int | None = None) -> Timeline:
    """Lay out a film's way; `lasting` is its frames where it does not say, such as those of its sound.

    Raises ReverieError where the frames do not reach the keyframes.
    """
    closed, many, fps = animation.loops_on, len(animation.keyframes), animation.fps
    times = [keyframe.time for keyframe in animation.keyframes if keyframe.time is not None]
    asked = animation.frames or (round(animation.seconds * fps) if animation.seconds else None)
    if times:
        stops = [round(time * fps) for time in times]
        count = asked or _natural_end(stops, closed, lasting)
    else:
        gaps = many if closed else many - 1
        count = asked or lasting or round(SECONDS * fps * max(1, gaps)) + (not closed)
        steps = count if closed else count - 1
        stops = [round(k * steps / max(1, gaps)) for k in range(many)]
    stops += [count] if closed else []
    if any(a >= b for a, b in pairwise(stops)) or (not closed and stops[-1] >= count):
        raise ReverieError(f"{count} frames do not reach {many} keyframes; make the film longer, or its rate higher")
    return Timeline(tuple(stops), count)


def _natural_end(stops: Sequence[int], closed: bool, lasting: int | None) -> int:
    """End with the sound, or with the last keyframe; the way back to the first takes as long as the others do."""
    if closed:
        return max(lasting or 0, stops[-1] + max(1, round(stops[-1] / max(1, len(stops) - 1))))
    return max(lasting or 0, stops[-1] + 1)


def order(count: int, ping_pong: bool, loop: bool) -> list[int]:
    """Return which frame of the way there each frame of the film is; the turning frames are shown once.

    A film that goes back and loops leaves out its last frame, as its first follows.
    """
    there = list(range(count))
    back = there[-2::-1] if ping_pong else []
    return there + (back[:-1] if loop else back)


Render = Callable[[Sequence[float]], Iterable[Image.Image]]
"""Draw the pictures of rising places, one by one."""


def by_sound(timeline: Timeline, fps: float, sound: Waveform, drive: str, smooth: float) -> tuple[float, ...]:
    """Let the sound, which begins with the film, move the path between the keyframes."""
    knots, times = [stop / fps for stop in timeline.stops], [frame / fps for frame in range(timeline.count)]
    return tuple(beat_places(sound, knots, times, drive=drive, smooth=smooth))


def by_sight(
    timeline: Timeline, render: Render, distance: Distance[Image.Image], *, timed: bool = False
) -> tuple[float, ...]:
    """Let the picture change at constant speed.

    Keyframes that have times of their own, `timed`, stay where they are, and the speed is constant from one to the
    next; else they move to where one speed for the whole film brings them, but each is on a frame.
    """
    last = len(timeline.stops) - 1
    if not timed:
        found = pace(render, range(last + 1), timeline.count + timeline.closed, distance).places
        return found[: timeline.count]
    places = [0.0] * timeline.stops[0]
    for part in range(last):
        frames = timeline.stops[part + 1] - timeline.stops[part]
        places += pace(render, (part, part + 1), frames + 1, distance).places[:-1]
    return tuple(places + [float(last)] * (timeline.count - len(places)))


SLACK = 1e-6  # pictures: rounding by which the time of a frame may fall short of that of its picture

Fit = Callable[[Image.Image], Image.Image]
"""Bring a picture to the size of the film."""


def source_pictures(
    pictures: Iterable[Image.Image], source_fps: float, fps: float, total: int, fit: Fit
) -> Iterator[Image.Image]:
    """Give the picture that a film of `source_fps` shows at the time of each of `total` frames, `fps` a second.

    Pictures are repeated (as the same object) or left out as the rates ask; after the end the last one stays.
    `pictures` is read one by one and no farther than needed; what is shown is brought to size once. Raises ReverieError
    for a film without pictures.
    """
    source = iter(pictures)
    latest = next(source, None)
    if latest is None:
        raise ReverieError("the film to start from holds no pictures; give one that does")
    read, shown = 0, fit(latest)
    for index in range(total):
        before = read
        while read < int(index / fps * source_fps + SLACK) and (following := next(source, None)) is not None:
            latest, read = following, read + 1
        if read > before:
            shown = fit(latest)
        yield shown


def frames_in(count: int, source_fps: float, fps: float) -> int:
    """Return how many frames, `fps` a second, last as long as `count` pictures of a film; at least one."""
    return max(1, round(count / source_fps * fps))
