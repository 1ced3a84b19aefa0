"""How is sound cut into a spectrogram? Rates, windows, bands: Riffusion's numbers unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass

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
