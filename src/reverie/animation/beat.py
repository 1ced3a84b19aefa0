"""Beat tracking: the path of a film is walked as fast as its sound's percussive energy flows.

Between two keyframes the place on the path follows the sum of the percussive energy so far (nateraw's
stable-diffusion-videos), or surges at every onset; the keyframes themselves are met at their own times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from reverie.diffusion.names import choose
from reverie.errors import ReverieError
from reverie.media.encoder import Waveform

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
