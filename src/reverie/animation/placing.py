"""Where on the path does each frame stand? By the clock and the easings, by the sound, or by what is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from reverie.animation.beat import beat_places
from reverie.animation.pacing import Distance, pace
from reverie.animation.timeline import Timeline
from reverie.media.encoder import Waveform

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
