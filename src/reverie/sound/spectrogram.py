"""Mel spectrograms with Riffusion's numbers and formula, and their inversion to magnitudes and phases.

Phases are found by phase gradients along peaks, then fast Griffin-Lim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from reverie.errors import ReverieError

PER_SECOND = 1000  # milliseconds
LONGEST = 1 << 17  # samples of a transform: 0.7 s at 192 kHz; more is a damaged tag, and takes gigabytes


@dataclass(frozen=True)
class SpectrogramParams:
    """Set how a waveform becomes a mel spectrogram and a spectrogram a picture.

    The defaults are Riffusion's (riffusion/spectrogram_params.py): one column of the picture is one step, one row one
    band of an HTK mel scale without normalisation. Raises ReverieError for numbers that describe no spectrogram.
    """

    sample_rate: int = 44_100  # Hz
    step_ms: int = 10
    window_ms: int = 100
    padded_ms: int = 400
    mels: int = 512
    low: int = 0  # Hz
    high: int = 10_000  # Hz
    power: float = 0.25  # of the amplitudes, for the grey levels
    stereo: bool = False
    columns: int = 512  # of the clips that a model was trained on

    def __post_init__(self) -> None:
        """Check that it can be computed."""
        if min(self.sample_rate, self.step_ms, self.window_ms, self.mels, self.columns) < 1 or not self.power > 0:
            raise ReverieError(f"{self} describes no spectrogram: rates, times, bands and power must be above 0")
        if not 0 <= self.low < self.high <= self.sample_rate / 2:
            raise ReverieError(
                f"bands from {self.low} to {self.high} Hz are not possible at {self.sample_rate} Hz; "
                f"give 0 <= low < high <= {self.sample_rate // 2}"
            )
        if not self.step_ms <= self.window_ms <= self.padded_ms:
            raise ReverieError(
                f"steps of {self.step_ms}, windows of {self.window_ms} and padding to {self.padded_ms} ms do not fit; "
                "give step <= window <= padded"
            )
        if self.hop < 1 or self.n_fft > LONGEST:
            raise ReverieError(
                f"steps of {self.hop} samples and transforms of {self.n_fft} are not possible; "
                f"give times and a rate with 1 or more, and {LONGEST} or fewer"
            )

    @property
    def hop(self) -> int:
        """Return the samples between two columns."""
        return int(self.step_ms / PER_SECOND * self.sample_rate)

    @property
    def window(self) -> int:
        """Return the samples under the Hann window."""
        return int(self.window_ms / PER_SECOND * self.sample_rate)

    @property
    def n_fft(self) -> int:
        """Return the samples of a transform: the window, padded with zeros."""
        return int(self.padded_ms / PER_SECOND * self.sample_rate)

    @property
    def seconds(self) -> float:
        """Return how long a clip of the model's own width lasts."""
        return self.columns * self.hop / self.sample_rate


SMALL = SpectrogramParams(sample_rate=16_000, step_ms=20, window_ms=64, padded_ms=64, mels=128, high=8_000, columns=256)
"""What the bundled music model hears: 5.12 s in a picture of 256 x 128 pixels."""


FULL_SCALE = 32_767  # Riffusion reads samples as 16-bit numbers


def spectrogram(samples: Float[Tensor, "c n"], params: SpectrogramParams) -> Float[Tensor, "c mels frames"]:
    """Return the mel amplitudes of a waveform in [-1, 1], at the scale of 16-bit samples, n // hop frames of them.

    Frame t is centred on sample t * hop; beyond its ends the sound is reflected (torchaudio's Spectrogram and MelScale,
    as riffusion/spectrogram_converter.py sets them, but for the frame after the end). Raises ReverieError for a sound
    shorter than half a transform, which cannot be reflected.
    """
    if samples.shape[1] <= params.n_fft // 2:
        least = (params.n_fft // 2 + 1) / params.sample_rate
        raise ReverieError(f"a sound of {samples.shape[1]} samples is too short; {least:.2f} s or more are taken")
    window = torch.hann_window(params.window, device=samples.device)
    bins = torch.stft(
        samples * FULL_SCALE, params.n_fft, params.hop, params.window, window, pad_mode="reflect", return_complex=True
    ).abs()
    mel = torch.einsum("cbt,bm->cmt", bins, mel_filters(params).to(samples.device))
    return mel[..., : max(1, samples.shape[1] // params.hop)]


def mel_filters(params: SpectrogramParams) -> Float[Tensor, "bins mels"]:
    """Return the weights of the bins 0 to n_fft // 2 in each band: triangles of height 1 on the HTK scale."""
    frequencies = torch.linspace(0, params.sample_rate // 2, params.n_fft // 2 + 1, dtype=torch.float64)
    corners = to_hertz(torch.linspace(to_mel(params.low), to_mel(params.high), params.mels + 2, dtype=torch.float64))
    widths = corners.diff()
    distances = corners - frequencies[:, None]
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0).float()


def to_mel(hertz: float) -> float:
    """Return the HTK mel of a frequency (Young et al., The HTK Book, 5.6)."""
    return 2595 * math.log10(1 + hertz / 700)


def to_hertz(mels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the frequencies of HTK mels."""
    return 700 * (10 ** (mels / 2595) - 1)


FINEST = 2  # transforms in windows: twice the window tells all of a frame's magnitudes (its autocorrelation's length)
FLOOR = 1e-7  # of the loudest band: quieter ones are not divided by
STEEPEST = 10.0  # how much louder one step makes a bin


@dataclass(frozen=True, eq=False)
class Bands:
    """Say how the bins of short transforms make mel bands.

    A frame has `window` samples, `hop` apart, and is transformed with `padded`: numbers of samples at a rate that
    just holds the highest band, at which a transform's bins lie where those of the parameters' own rate do.
    """

    window: int
    hop: int
    padded: int
    filters: Float[Tensor, "mels bins"]  # sparse: a bin is in two or three bands
    spread: Float[Tensor, "bins mels"]  # their transpose, by which each bin's weights sum to 1; sparse too

    def to(self, device: torch.device) -> Bands:
        """Copy to a device."""
        return replace(self, filters=self.filters.to(device), spread=self.spread.to(device))

    def towards(
        self, mel: Float[Tensor, "c mels frames"], magnitudes: Float[Tensor, "c frames bins"]
    ) -> Float[Tensor, "c frames bins"]:
        """Return magnitudes whose bands are nearer to `mel`, by one multiplicative step.

        Lee and Seung, 2001, eq. 5: the divergence between the bands and `mel` falls with each step, nothing becomes
        negative, and of many solutions one like `magnitudes` is found.
        """
        floor = FLOOR * mel.max().clamp(min=torch.finfo(mel.dtype).tiny)
        wanted, now = mel.transpose(0, 1).flatten(1), torch.sparse.mm(self.filters, magnitudes.flatten(0, 1).T)
        ratios = (wanted / (now + floor)).clamp(max=STEEPEST)
        return magnitudes * torch.sparse.mm(self.spread, ratios).T.reshape(magnitudes.shape)


@lru_cache(maxsize=4)
def bands_of(params: SpectrogramParams) -> Bands:
    """Lay out the shortest transforms that give the parameters' bands.

    Riffusion pads 100 ms windows to 400 ms at 44,100 Hz: 17,640 samples. Nothing above 10 kHz counts, for which
    20,000 Hz suffice, and transforms of two windows hold all that longer ones do: 4,000 samples.
    """
    padding = min(FINEST, params.n_fft // params.window)
    part = params.window // math.gcd(params.window, params.hop)  # a window is so many equal parts, the hop some of them
    needed = 2 * math.ceil(params.high * params.window / params.sample_rate)
    window = min(params.window, -(-needed // part) * part)
    filters = _coarser(mel_filters(params), padding * params.window / params.n_fft)[: padding * window // 2 + 1]
    spread = filters / filters.sum(1, keepdim=True).clamp(min=torch.finfo(filters.dtype).tiny)
    to_own_rate = params.window / window  # as many times more samples are summed there
    hop = params.hop * window // params.window
    return Bands(window, hop, padding * window, (filters.T * to_own_rate).to_sparse(), spread.to_sparse())


def _coarser(filters: Float[Tensor, "bins mels"], step: float) -> Float[Tensor, "fewer mels"]:
    """Return the filters for bins so many times fewer, between which magnitudes are taken to go straight."""
    places = torch.arange(len(filters), dtype=torch.float64) * step
    below, rest = places.long(), places.frac().float()[:, None]
    fewer = filters.new_zeros(int(below[-1]) + 2, filters.shape[1])
    return fewer.index_add(0, below, filters * (1 - rest)).index_add(0, below + 1, filters * rest)


@dataclass(frozen=True)
class Line:
    """Cut `count` * `hop` samples into `count` frames of `window` samples, the first centred on the first sample.

    Beyond its ends the waveform is mirrored, as in spectrograms. Each frame is transformed with `padded` samples, zeros
    behind the window.
    """

    window: int
    hop: int
    count: int
    padded: int

    @property
    def samples(self) -> int:
        """Return how many samples the frames tell."""
        return self.count * self.hop

    def analyse(self, samples: Float[Tensor, "c n"]) -> Complex[Tensor, "c frames bins"]:
        """Return the spectrum of each frame under a Hann window."""
        extended = samples.index_select(1, _sample_indices(self, samples.device))
        frames = extended.unfold(-1, self.window, self.hop) * torch.hann_window(self.window, device=samples.device)
        return torch.fft.rfft(frames, self.padded)

    def synthesise(self, spectrum: Complex[Tensor, "c frames bins"]) -> Float[Tensor, "c n"]:
        """Return the waveform whose spectra are nearest, in least squares (Griffin and Lim, 1984, eq. 6).

        Spectra of fewer bins than padded // 2 + 1 are those of a sound without what lies above.
        """
        window = torch.hann_window(self.window, device=spectrum.device)
        frames = torch.fft.irfft(spectrum, self.padded)[..., : self.window] * window
        return self.overlap_add(frames) / _weights(self, spectrum.device)

    def sources(self, places: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
        """Return which sample is at a place, which may lie before the first or after the last."""
        period = max(1, 2 * (self.samples - 1))
        inside = places.remainder(period)
        return torch.minimum(inside, period - inside)

    def overlap_add(self, frames: Float[Tensor, "c frames window"]) -> Float[Tensor, "c n"]:
        """Add overlapping frames hop by hop, then what lies beyond the ends to the samples that it stands for."""
        hops = -(-self.window // self.hop)
        pieces = F.pad(frames, (0, hops * self.hop - self.window)).unflatten(-1, (hops, self.hop))
        laid = frames.new_zeros(len(frames), self.count + hops - 1, self.hop)
        for index in range(hops):
            laid[:, index : index + self.count] += pieces[:, :, index]
        covered = _sample_indices(self, frames.device)
        return frames.new_zeros(len(frames), self.samples).index_add(1, covered, laid.flatten(1)[:, : len(covered)])


class Circle(Line):
    """Cut a waveform that begins again where it ends."""

    def sources(self, places: Int[Tensor, " p"]) -> Int[Tensor, " p"]:
        """Return which sample is at a place, turn after turn."""
        return places.remainder(self.samples)


@lru_cache(maxsize=1)  # iterations ask again and again
def _sample_indices(frames: Line, device: torch.device) -> Int[Tensor, " p"]:
    """Return the samples from the beginning of the first frame to the end of the last."""
    reach = (frames.count - 1) * frames.hop + frames.window
    return frames.sources(torch.arange(reach, device=device) - frames.window // 2)


@lru_cache(maxsize=1)
def _weights(frames: Line, device: torch.device) -> Float[Tensor, "1 n"]:
    """Return by what samples are divided once overlapping frames were added."""
    squares = torch.hann_window(frames.window, device=device) ** 2
    weights = frames.overlap_add(squares.expand(1, frames.count, -1))
    return weights.clamp(min=torch.finfo(weights.dtype).tiny)


# The phase's derivatives are those of the log-magnitude under a Gaussian window (Prusa, Balazs and Sondergaard, "A
# noniterative method for reconstruction of phase from STFT magnitude", 2017); the Gaussian nearest to Hann's window.
HANN = 0.25645  # of the window's square
PHASE_FLOOR = 1e-6  # of the loudest bin, below which nothing tells a phase


def estimate_phases(magnitudes: Float[Tensor, "c frames bins"], bands: Bands) -> Float[Tensor, "c frames bins"]:
    """Return phases in radians, as a transform that begins with its frame has them.

    The phase gradient is that of phase gradient heap integration; it is integrated frame by frame instead of in the
    order of a heap: a peak takes its phase from the frame before, a bin between peaks from the one on whose slope it
    lies (as a phase vocoder locks them, Laroche and Dolson, 1999). So all bins of a frame are done at once.
    """
    frames, bins = magnitudes.shape[-2:]
    rates, delays = gradients(magnitudes, bands)
    summits = summits_of(magnitudes)
    slopes = ((delays + delays.roll(1, -1)) / 2).cumsum(-1)
    slopes -= slopes.gather(-1, summits)
    steps = (rates + rates.roll(1, -2)) / 2
    phases = slopes.clone()
    for frame in range(1, frames):
        ahead = phases[:, frame - 1] + steps[:, frame]
        phases[:, frame] = (ahead.gather(-1, summits[:, frame]) + slopes[:, frame]).remainder(2 * math.pi)
    to_middle = math.pi * bands.window / bands.padded * torch.arange(bins, device=magnitudes.device)
    return phases - to_middle


def gradients(
    magnitudes: Float[Tensor, "c frames bins"], bands: Bands
) -> tuple[Float[Tensor, "c frames bins"], Float[Tensor, "c frames bins"]]:
    """Return how much the phase grows from frame to frame and from bin to bin, seen from the middle of each frame."""
    logs = (magnitudes + PHASE_FLOOR * magnitudes.max()).clamp(min=torch.finfo(magnitudes.dtype).tiny).log()
    around = F.pad(logs, (1, 1, 1, 1), mode="replicate")
    over_time = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
    over_bins = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
    spread = HANN * bands.window**2 / bands.padded
    turns = torch.arange(magnitudes.shape[-1], device=logs.device) * bands.hop % bands.padded / bands.padded
    return over_bins * (bands.hop / spread) + 2 * math.pi * turns, over_time * (-spread / bands.hop)


def summits_of(magnitudes: Float[Tensor, "c frames bins"]) -> Int[Tensor, "c frames bins"]:
    """Return for each bin the peak that is reached from it by going upwards."""
    bins = torch.arange(magnitudes.shape[-1], device=magnitudes.device).expand(magnitudes.shape)
    rises = F.pad(magnitudes.diff(dim=-1) > 0, (1, 1))
    rises[..., 0], climbing = True, rises[..., 1:]
    peaks = rises[..., :-1] & ~climbing
    last = len(bins[0, 0]) - 1
    before = torch.where(peaks, bins, 0).cummax(-1).values
    after = last - torch.where(peaks, last - bins, 0).flip(-1).cummax(-1).values.flip(-1)
    return torch.where(climbing, after, before)


FITTING = 6  # steps towards the mel spectrogram before phases are suggested
ITERATIONS = 16
FAINT = 1e-9  # an amplitude that has no phase
MOMENTUM = 0.99  # Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm", 2013


@torch.no_grad()
def waveform(
    mel: Float[Tensor, "c mels frames"],
    params: SpectrogramParams,
    time: type[Line] = Line,
    iterations: int = ITERATIONS,
) -> Float[Tensor, "c n"]:
    """Return frames * hop samples whose mel amplitudes, at the scale of 16-bit samples, are near to `mel`.

    With a `time` that is a Circle the end goes on at the beginning. Each iteration is one of fast Griffin-Lim, but for
    the magnitudes that it keeps: not the same ones every time, but those just found, a step nearer to the bands, as
    only the bands are known (Masuyama et al., "Signal reconstruction from mel-spectrogram based on bi-level
    consistency", 2023). Channels begin with the same phases, so that what is in the middle stays there.
    """
    device = mel.device if mel.is_cuda else torch.device("cpu")  # sparse products are for these
    bands, mel = bands_of(params).to(device), mel.float().to(device)
    frames = time(bands.window, bands.hop, mel.shape[-1], bands.padded)
    magnitudes = mel.max().expand(len(mel), mel.shape[-1], bands.padded // 2 + 1)
    for _ in range(FITTING):
        magnitudes = bands.towards(mel, magnitudes)
    spectrum = torch.polar(magnitudes, estimate_phases(magnitudes.mean(0, keepdim=True), bands).expand_as(magnitudes))
    before = torch.view_as_real(torch.zeros_like(spectrum))
    for _ in range(iterations):
        now = torch.view_as_real(frames.analyse(frames.synthesise(spectrum)))
        ahead = now.lerp(before, -MOMENTUM)
        scales = bands.towards(mel, magnitudes_of(now)) / magnitudes_of(ahead).clamp(min=FAINT)
        spectrum = torch.view_as_complex(ahead * scales[..., None])
        before = now
    whole = time(params.window, params.hop, mel.shape[-1], bands.padded // bands.window * params.window)
    return whole.synthesise(spectrum * (params.window / bands.window)) / FULL_SCALE


def magnitudes_of(parts: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape"]:
    """Return the magnitudes of complex numbers given as real and imaginary parts, faster than torch's `abs` does."""
    return torch.addcmul(parts[..., 0].square(), parts[..., 1], parts[..., 1]).sqrt_()
