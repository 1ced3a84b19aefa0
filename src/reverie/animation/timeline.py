"""The timeline of a film: on which frame each keyframe stands, where on the path each frame is, what lies under it.

With a sound, the place between two keyframes follows the sum of the percussive energy so far (nateraw's
stable-diffusion-videos), or surges at every onset; the keyframes themselves are met at their own times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reverie.animation.pacing import Distance, pace
from reverie.errors import ReverieError, choose
from reverie.media.encoder import Waveform
from reverie.requests.films import EASINGS

if TYPE_CHECKING:
    from reverie.requests.films import Animation

Floats = NDArray[np.float64]

# As librosa, which nateraw uses, reads any sound: 22,050 Hz, windows of 2,048 samples, a quarter of that between them.
RATE, WINDOW = 22_050, 2_048
BANDS = 128
MEDIAN = 31  # frames, and frequency bins, that tell a tone from a beat (Fitzgerald 2010)
BLOCK = 1 << 23  # numbers that are sorted at once: 64 MB
FLOOR = 1e-3  # of the mean drive: how much the path moves in silence
FADE = 0.12  # seconds in which the surge of an onset dies down to 1/e
NEAR, AROUND, CLEAR = 0.03, 0.1, 0.07  # an onset is the largest within NEAR s, and CLEAR above the mean AROUND it, in s


@dataclass(frozen=True, eq=False)
class Envelope:
    """Hold how strongly a sound drives a film at each moment: values of 0 and more, `rate` of them a second."""

    values: Floats
    rate: float

    def distance_at(self, times: Floats) -> Floats:
        """Return the sum up to each time in seconds; what goes beyond the sound is driven by its mean.

        Each value stands in the middle of its time.
        """
        values = np.maximum(self.values, FLOOR * self.values.mean()) if self.values.any() else self.values + 1
        edges = (np.arange(len(values) + 1) - 0.5) / self.rate
        within = np.interp(times, edges, np.concatenate([[0.0], np.cumsum(values)]) / self.rate)
        return within + np.maximum(times - edges[-1], 0) * values.mean()


def beat_places(
    sound: Waveform, knots: Sequence[float], times: Sequence[float], *, drive: str = "energy", smooth: float = 0.0
) -> list[float]:
    """Return the place on the path of frames at `times`, walked as the sound says; both in seconds from its start.

    `knots` are the rising times of the keyframes: at knots[k] the place is k. `drive` is one of DRIVES. `smooth` goes
    from 0, by the sound alone, to 1, evenly. Where a sound is silent the path moves evenly from keyframe to keyframe.
    Raises ReverieError for an unknown drive, knots that do not rise and an empty sound.
    """
    if len(knots) < 2 or any(a >= b for a, b in pairwise(knots)):
        raise ReverieError(f"keyframes at {list(knots)} s do not rise in time; give two or more, each after the last")
    if not 0 <= smooth <= 1:
        raise ReverieError(f"smoothing {smooth:g} is not possible; give 0 (by the sound alone) to 1 (evenly)")
    envelope = choose("drive", drive, DRIVES)(sound)
    ends, at = np.array(knots, dtype=np.float64), np.array(times, dtype=np.float64)
    here, there = envelope.distance_at(at), envelope.distance_at(ends)
    part = np.clip(np.searchsorted(ends, at, side="right") - 1, 0, len(ends) - 2)
    driven = (here - there[part]) / (there[part + 1] - there[part])
    even = (at - ends[part]) / (ends[part + 1] - ends[part])
    places = part + np.clip((1 - smooth) * driven + smooth * even, 0, 1)
    return [float(place) for place in places]


def percussive_energy(sound: Waveform) -> Envelope:
    """Follow the loudest mel band of what is percussive, from 0 to 1 (nateraw: get_timesteps_arr)."""
    spectrum, hertz, rate = _spectrum(sound)
    loudest = (_mel_filters(hertz) @ percussive(spectrum).square()).amax(0).double().numpy()
    spread = np.ptp(loudest)
    return Envelope((loudest - loudest.min()) / spread if spread > 0 else np.zeros_like(loudest), rate)


def onset_pulses(sound: Waveform) -> Envelope:
    """Surge at every onset, by its strength, and fade within FADE seconds."""
    strength = onset_strength(sound)
    pulses = np.zeros_like(strength.values)
    found = onsets(strength)
    pulses[found] = strength.values[found]
    fade = np.exp(-np.arange(int(8 * FADE * strength.rate)) / (FADE * strength.rate))
    return Envelope(np.convolve(pulses, fade)[: len(pulses)], strength.rate)


def onset_strength(sound: Waveform) -> Envelope:
    """Tell how much louder the mel bands have become since the frame before, in mean decibels (librosa: onset).

    A hit is heard as soon as a window reaches it, about a frame before the window's middle does: that frame is made up.
    """
    spectrum, hertz, rate = _spectrum(sound)
    power = _mel_filters(hertz) @ spectrum.square()
    decibels = 10 * power.clamp(min=1e-10).log10()
    decibels = decibels.clamp(min=decibels.max().item() - 80)
    louder = F.pad(decibels.diff(dim=1), (2, -1)).clamp(min=0).mean(0)
    return Envelope(louder.double().numpy(), rate)


def onsets(strength: Envelope) -> NDArray[np.intp]:
    """Find the frames where sounds begin: peaks of the strength that stand out from their surroundings."""
    values = strength.values / max(strength.values.max(), 1e-12)
    near, around = (max(1, round(seconds * strength.rate)) for seconds in (NEAR, AROUND))
    windows = np.lib.stride_tricks.sliding_window_view
    highest = windows(np.pad(values, near, constant_values=0), 2 * near + 1).max(1)
    mean = windows(np.pad(values, around, mode="edge"), 2 * around + 1).mean(1)
    return np.flatnonzero((values == highest) & (values >= mean + CLEAR))


def percussive(spectrum: Float[Tensor, "bins frames"]) -> Float[Tensor, "bins frames"]:
    """Keep what is percussive of a magnitude spectrum: wide in frequency and short in time, not the other way.

    Medians along time and along frequency tell the two apart, and a soft mask divides (Fitzgerald, DAFx 2010; librosa:
    decompose.hpss).
    """
    tonal = _medians(spectrum).square()
    struck = _medians(spectrum.T).T.square()
    total = tonal + struck
    return spectrum * torch.where(total > 0, struck / total.clamp(min=torch.finfo(total.dtype).tiny), 0.5)


def _medians(rows: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Take the median of MEDIAN neighbours along each row; the ends are mirrored, their last value with them."""
    half, n = MEDIAN // 2, rows.shape[1]
    index = torch.arange(-half, n + half) % (2 * n)
    padded = rows[:, torch.where(index < n, index, 2 * n - 1 - index)]
    blocks = padded.split(max(1, BLOCK // (MEDIAN * n)))
    return torch.cat([block.unfold(1, MEDIAN, 1).median(-1).values for block in blocks])


def _spectrum(sound: Waveform) -> tuple[Float[Tensor, "bins frames"], Float[Tensor, " bins"], float]:
    """Return magnitudes up to 11 kHz, the frequencies of their bins, and the frames a second."""
    samples = torch.as_tensor(sound.samples, dtype=torch.float32, device="cpu").mean(0)
    if not len(samples):
        raise ReverieError("the sound is empty; give one that lasts")
    window = 2 ** max(8, round(np.log2(WINDOW * sound.rate / RATE)))  # as long as librosa's, at the sound's own rate
    hop = window // 4
    shape = torch.hann_window(window)
    spectrum = torch.stft(samples, window, hop, window=shape, pad_mode="reflect", return_complex=True).abs()
    hertz = torch.arange(len(spectrum)) * sound.rate / window
    return spectrum[hertz <= RATE / 2], hertz[hertz <= RATE / 2], sound.rate / hop


def _mel_filters(hertz: Float[Tensor, " bins"]) -> Float[Tensor, "bands bins"]:
    """Weigh frequencies by triangles of equal area on Slaney's mel scale, linear up to 1 kHz and logarithmic above."""
    step, knee = 200 / 3, 1000.0
    log_step = np.log(6.4) / 27
    highest = knee / step + np.log(RATE / 2 / knee) / log_step
    mels = np.linspace(0, highest, BANDS + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(log_step * (mels - knee / step)))
    low, middle, high = (torch.from_numpy(edge)[:, None] for edge in (edges[:-2], edges[1:-1], edges[2:]))
    triangles = torch.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


DRIVES: dict[str, Callable[[Waveform], Envelope]] = {"energy": percussive_energy, "onsets": onset_pulses}


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
    """Let the sound, which begins with the film, move the path between the keyframes; return each frame's place.

    `fps` are frames a second; `drive` is one of DRIVES; `smooth` goes from 0, by the sound alone, to 1, evenly.
    """
    knots, times = [stop / fps for stop in timeline.stops], [frame / fps for frame in range(timeline.count)]
    return tuple(beat_places(sound, knots, times, drive=drive, smooth=smooth))


def by_sight(
    timeline: Timeline, render: Render, distance: Distance[Image.Image], *, timed: bool = False
) -> tuple[float, ...]:
    """Let the picture change at constant speed, as `distance` sees what `render` draws at places; return the places.

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
