"""Mel spectrograms with Riffusion's numbers and formula, and their inversion to magnitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
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
