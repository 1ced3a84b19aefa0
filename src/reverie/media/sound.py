"""Sound files: WAV, FLAC, OGG and MP3 through libsndfile, with texts inside; lengths are counted, not believed."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reverie.errors import ReverieError, warn
from reverie.files import atomic_write, check_place, reason_of
from reverie.media import mp3
from reverie.media.encoder import COMMENT
from reverie.media.pictures import REQUEST

if TYPE_CHECKING:
    import soundfile

# Suffix -> libsndfile's container and coding. 16 bits are what every player reads.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
TAGS = ("title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre")
WAV_TEXTS = 1_800  # bytes; libsndfile drops, without a word, what is above 2,000
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # ISO 11172-3, 13818-3, and 2.5
SLOWEST, FASTEST = 1_000, 768_000  # Hz; what is outside is a damaged header
CHANNELS = 2
LONGEST = 1 << 30  # samples of all channels: 4 GB, three hours of stereo; more is a bomb or wants cutting first
BLOCK = 1 << 16  # frames at once: libsndfile's Vorbis encoder overflows its stack on a whole song
FULL_SCALE = 1 << 15  # of sixteen bits
ENDLESS = 0x7FFF0000  # bytes of samples from which a header speaks of a stream: sox writes this, FFmpeg 0xFFFFFFFF
CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"FORM")  # that files of the suffix .mp3 may be all the same
OTHERS = "mov,mp4,m4a,3gp,matroska,webm,aac,asf,amr"  # what FFmpeg reads for libsndfile
WHOLE = 0.99  # share of the sound below which it is said to be cut off
PEAK = -1.0  # dBFS: what lossy codecs overshoot stays below full scale
Source = str | Path | io.BytesIO  # a sound file, or what it holds


@dataclass(frozen=True, eq=False)
class Sound:
    """Hold a waveform: samples in [-1, 1], mono or stereo, `rate` of them a second in each channel.

    Raises ReverieError for no samples, more than two channels, values that are not finite and rates beyond reason.
    """

    samples: Float[Tensor, "channels n"]
    rate: int

    def __post_init__(self) -> None:
        """Check what a waveform must be."""
        check_form(self.rate, self.channels)
        if self.samples.shape[1] == 0:
            raise ReverieError("there is no sound in it: 0 samples; give one that lasts")
        if not self.samples.isfinite().all():
            raise ReverieError("the sound holds values that are not finite (NaN or infinity); export it anew")

    def __repr__(self) -> str:
        """Say how long it is and of what kind."""
        return f"Sound({self.seconds:.2f} s, {self.rate} Hz, {'mono' if self.channels == 1 else 'stereo'})"

    def _repr_html_(self) -> str:
        """Play in a notebook."""
        data = base64.b64encode(encode(self, ".wav")).decode("ascii")
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'

    @property
    def channels(self) -> int:
        """Return 1 for mono, 2 for stereo."""
        return self.samples.shape[0]

    @property
    def seconds(self) -> float:
        """Return how long it lasts."""
        return self.samples.shape[1] / self.rate

    @property
    def peak(self) -> float:
        """Return the largest magnitude; 1 is full scale."""
        return self.samples.abs().max().item()

    def mono(self) -> Sound:
        """Return the mean of its channels."""
        return Sound(self.samples.mean(0, keepdim=True), self.rate)

    def stereo(self) -> Sound:
        """Return two channels: its own, or twice the one."""
        return Sound(self.samples.expand(2, -1), self.rate)

    def resampled(self, rate: int) -> Sound:
        """Convert to another rate, band-limited (soxr, high quality); round(n * rate / self.rate) samples."""
        check_form(rate, self.channels)
        if rate == self.rate:
            return self
        samples = _soxr().resample(self.samples.T.cpu().numpy(), self.rate, rate, quality="HQ")
        return Sound(torch.from_numpy(samples).T.contiguous(), rate)

    def normalised(self, peak: float = PEAK) -> Sound:
        """Scale all channels alike, so that the largest magnitude is `peak` dBFS; silence stays silence."""
        return Sound(self.samples * (10 ** (peak / 20) / self.peak), self.rate) if self.peak > 0 else self

    def unclipped(self) -> Sound:
        """Return itself where every sample is within [-1, 1], else scaled down to -1 dBFS."""
        return self.normalised() if self.peak > 1 else self


def check_form(rate: int, channels: int) -> None:
    """Raise ReverieError for a rate beyond reason, and for channels that are neither mono nor stereo."""
    if not SLOWEST <= rate <= FASTEST:
        raise ReverieError(f"a sample rate of {rate} Hz is beyond reason; {SLOWEST} to {FASTEST} Hz are taken")
    if not 1 <= channels <= CHANNELS:
        raise ReverieError(f"the sound has {channels} channels; mono (1) and stereo (2) are taken: mix it down")


def check_writable(path: str | Path) -> None:
    """Raise ReverieError where no sound can be written: another suffix, a folder of that name, no folder to be in."""
    path = Path(path)
    check_place(path)
    if path.suffix.lower() not in FORMATS:
        raise ReverieError(f"cannot write '{path}': unknown sound format; choose from {', '.join(FORMATS)}")


def check_texts(texts: dict[str, str], suffix: str) -> None:
    """Raise ReverieError for an unknown tag, and for texts that a file of this suffix cannot hold."""
    for name in texts.keys() - {*TAGS, REQUEST}:
        raise ReverieError(f"unknown tag '{name}'; choose from {', '.join(TAGS)}")
    size = sum(len(text.encode()) for text in texts.values())
    if suffix == ".wav" and size > WAV_TEXTS:
        raise ReverieError(f"a WAV file takes {WAV_TEXTS} bytes of texts, these have {size}; write .flac, .ogg or .mp3")


def read(source: Source, start: float = 0.0, seconds: float | None = None) -> Sound:
    """Read a sound file: what libsndfile reads, told by content. Float files and MP3 may go beyond [-1, 1] a little.

    From second `start` to the end, or for just `seconds`, where silence follows the end. Raises ReverieError, naming
    the file, where there is none, it is damaged, empty from `start` on, too long, or has over two channels.
    """
    with _open(source) as file:
        try:
            check_form(file.samplerate, file.channels)
            file.seek(min(round(start * file.samplerate), file.frames))
            if seconds is None:
                samples = _samples(file, LONGEST)
                left = file.frames - round(start * file.samplerate)
                if 0 < left < LONGEST:  # a FLAC from a pipe says nothing
                    _warn_if_cut(source, samples.shape[1] / left)
                return Sound(samples, file.samplerate)
            wanted = round(seconds * file.samplerate)
            sound = Sound(_samples(file, wanted), file.samplerate)
            return Sound(F.pad(sound.samples, (0, wanted - sound.samples.shape[1])), sound.rate)
        except ReverieError as error:
            raise ReverieError(f"'{source}': {error}") from error
        except (_soundfile().LibsndfileError, MemoryError) as error:
            raise ReverieError(f"cannot read '{source}': its sound is damaged") from error


def duration(source: Source) -> float:
    """Return how many seconds a sound file lasts. Raises ReverieError where it is no sound file."""
    with _open(source) as file:
        return file.frames / file.samplerate


def write(sound: Sound, path: str | Path, *, texts: dict[str, str] | None = None) -> None:
    """Write a sound as its suffix says, beside the target and then renamed over it; louder than full scale is scaled.

    MP3 takes the next of its rates. `texts` are tags by libsndfile's names (title, comment, software, ...), of which
    the comment holds our request.
    Raises ReverieError for another suffix, an unknown tag, texts too long for a WAV, and a file that cannot be written.
    """
    path = Path(path)
    check_writable(path)
    check_texts(texts or {}, path.suffix.lower())
    tags = {COMMENT if name == REQUEST else name: text for name, text in (texts or {}).items()}
    if path.suffix.lower() == ".mp3" and sound.rate not in MP3_RATES:
        sound = sound.resampled(min((rate for rate in MP3_RATES if rate > sound.rate), default=MP3_RATES[-1]))
    suffix, sound = path.suffix.lower(), sound.unclipped()
    with atomic_write(path) as temporary, temporary.open("w+b") as file:
        if suffix == ".mp3":  # libsndfile writes Latin-1 into its tags
            file.write(mp3.id3(tags) + encode(sound, suffix))
        else:
            _encode(sound, file, suffix, tags)


def encode(sound: Sound, suffix: str) -> bytes:
    """Return what a sound file of a suffix of FORMATS holds; louder than full scale is scaled."""
    file = io.BytesIO()
    _encode(sound.unclipped(), file, suffix, {})
    return file.getvalue()


def read_texts(path: str | Path) -> dict[str, str]:
    """Read the tags of a sound file by libsndfile's names, and our request; what it does not hold is left out."""
    with _open(path) as file:
        texts = {name: text for name, text in file.copy_metadata().items() if text}
    return {**texts, REQUEST: texts[COMMENT]} if texts.get(COMMENT, "").startswith("{") else texts


def _open(source: Source) -> soundfile.SoundFile:
    soundfile = _soundfile()
    try:
        return soundfile.SoundFile(_with_true_length(source))
    except OSError as error:
        raise ReverieError(f"cannot read '{source}': {reason_of(error)}") from error
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: .raw asks for a form that nobody gave
        if (decoded := _decode_others(source)) is not None:
            return soundfile.SoundFile(decoded)
        raise ReverieError(
            f"cannot read '{source}': no sound that is known, or damaged; WAV, FLAC, OGG and MP3 are"
        ) from error


def _decode_others(source: Source) -> io.BytesIO | None:
    """Return the sound of what libsndfile does not read (M4A, AAC, films) as a WAV file; None where PyAV reads none."""
    try:
        import av
    except ImportError:
        return None
    file = source if isinstance(source, io.BytesIO) else str(source)
    if isinstance(file, io.BytesIO):
        file.seek(0)
    blocks: list[np.ndarray] = []
    rate, total = 0, 0
    try:
        options = {"format_whitelist": OTHERS, "protocol_whitelist": "file"}
        with av.open(file, options=options, metadata_errors="replace") as opened:
            resampler = av.AudioResampler(format="flt")
            for frame in opened.decode(audio=0):
                for block in resampler.resample(frame):
                    rate = block.rate
                    blocks.append(block.to_ndarray().reshape(-1, block.layout.nb_channels))
                    total += blocks[-1].size
                    if total > LONGEST:
                        raise ReverieError(f"'{source}': the sound is longer than {LONGEST / rate / 3600:.1f} hours")
    except (av.FFmpegError, IndexError):  # of no such form, or without a sound
        return None
    if not blocks:
        return None
    decoded = io.BytesIO()
    _soundfile().write(decoded, np.concatenate(blocks), rate, format="WAV", subtype="FLOAT")
    decoded.seek(0)
    return decoded


def _with_true_length(source: Source) -> Source:
    """Return a sound file, or what it holds with a length in its header that is true, where libsndfile needs that."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
        return _mend(source, source)
    with Path(source).open("rb") as file:
        return _mend(source, file)


def _mend(source: Source, file: BinaryIO) -> Source:
    head = file.read(4)
    file.seek(0)
    if mp3.is_mp3(head):
        data, share = mp3.with_length(file.read())
        _warn_if_cut(source, share)
        return io.BytesIO(data)
    if str(source).lower().endswith(".mp3") and head not in CONTAINERS:
        return io.BytesIO(mp3.without_junk(file.read()))  # libsndfile's own search writes to stderr
    if head == b"RIFF" and (place := _wav_data(file)):
        source = _mend_wav(source, file, place)
    file.seek(0)
    return source


def _wav_data(file: BinaryIO) -> int:
    """Return where the samples of a WAV file begin, after the size of their chunk; 0 where there are none."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        if head.startswith(b"data"):
            return file.tell()
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, io.SEEK_CUR)
    return 0


def _mend_wav(source: Source, file: BinaryIO, place: int) -> Source:
    """Write the size of a WAV file's samples where a pipe left 0 or as much as there could be; say where some miss."""
    file.seek(place - 4)
    size, there = int.from_bytes(file.read(4), "little"), file.seek(0, io.SEEK_END) - place
    file.seek(0)
    if there and (size == 0 or size >= ENDLESS):
        data = file.read()
        sizes = [(len(data) - 8).to_bytes(4, "little"), there.to_bytes(4, "little")]
        return io.BytesIO(b"".join([data[:4], sizes[0], data[8 : place - 4], sizes[1], data[place:]]))
    _warn_if_cut(source, there / size if size else 1.0)
    return source


def _warn_if_cut(source: Source, share: float) -> None:
    if share < WHOLE:
        warn(f"'{source}' is cut off: {share:.0%} of the sound that its header tells of is there", stacklevel=3)


def _samples(file: soundfile.SoundFile, frames: int) -> Float[Tensor, "channels n"]:
    """Read at most so many frames, block by block: what a header says of its length is not believed."""
    blocks, total = [], 0
    while len(block := file.read(min(BLOCK, frames), dtype="float32", always_2d=True)):
        blocks.append(torch.from_numpy(block))
        frames -= len(block)
        total += block.size
        if total > LONGEST:
            raise ReverieError(f"the sound is longer than {LONGEST / file.samplerate / file.channels / 3600:.1f} hours")
    return torch.cat(blocks).T.contiguous() if blocks else torch.empty(file.channels, 0)


class _Sink:
    """Pass a file to libsndfile, whose callbacks swallow exceptions, and keep the first OSError; then do nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._call(self._file.write, data)
        return len(data)

    def read(self, size: int) -> bytes:
        return self._call(self._file.read, size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._call(self._file.seek, offset, whence) or 0

    def tell(self) -> int:
        return self._call(self._file.tell) or 0

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        if self.error is None:
            try:
                return function(*given)
            except OSError as error:
                self.error = error
        return None


def _encode(sound: Sound, file: BinaryIO, suffix: str, texts: dict[str, str]) -> None:
    """Write a sound into an open file. Raises OSError where that cannot be."""
    soundfile = _soundfile()
    container, coding = FORMATS[suffix]
    samples = sound.samples.T.cpu().numpy()
    sink, form = _Sink(file), {"samplerate": sound.rate, "channels": sound.channels}
    with soundfile.SoundFile(sink, "w", **form, format=container, subtype=coding) as out:
        for name, text in texts.items():
            setattr(out, name, text)
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            if coding == "PCM_16":  # which libsndfile rounds down in WAV
                block = np.clip(np.rint(block * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
            out.write(block)
            if sink.error is not None:
                break
    if sink.error is not None:
        raise sink.error


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing
        raise ReverieError("sound files need soundfile; pip install 'reverie[sound]'") from error
    return soundfile


def _soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise ReverieError("another sample rate needs soxr; pip install 'reverie[sound]'") from error
    return soxr
