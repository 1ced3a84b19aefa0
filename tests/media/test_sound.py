"""Sounds survive their files, headers are not believed, and what is no sound is said in one line."""

from __future__ import annotations

import io
import math
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from reverie.errors import ReverieError
from reverie.media import mp3, sound
from reverie.media.sound import Sound

RATE = 22_050


def tone(hertz: float = 440.0, seconds: float = 0.5, rate: int = RATE, channels: int = 2) -> Sound:
    time = torch.arange(round(seconds * rate)) / rate
    return Sound(torch.stack([torch.sin(2 * math.pi * (k + 1) * hertz * time) / 2 for k in range(channels)]), rate)


@pytest.mark.parametrize(("suffix", "decibels"), [(".wav", 85), (".flac", 85), (".ogg", 25), (".mp3", 20)])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_hold_the_sound(tmp_path: Path, suffix: str, decibels: float, channels: int) -> None:
    given = tone(channels=channels)
    sound.write(given, tmp_path / f"a{suffix}", texts={"comment": '{"prompt": "爵士"}', "title": "jazz"})
    back = sound.read(tmp_path / f"a{suffix}")
    assert (back.rate, back.channels) == (given.rate, channels)
    assert abs(back.seconds - given.seconds) < 0.08  # MP3 pads to whole frames
    error = back.samples[:, : given.samples.shape[1]] - given.samples
    assert 10 * math.log10(given.samples.square().mean() / error.square().mean()) > decibels
    assert sound.read_texts(tmp_path / f"a{suffix}")["comment"] == '{"prompt": "爵士"}'
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_wav_is_what_the_standard_library_reads(tmp_path: Path) -> None:
    sound.write(given := tone(), tmp_path / "a.wav")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 2, 2)
        levels = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, 2)
    assert np.abs(levels.T / 32768 - given.samples.numpy()).max() <= 1 / 32768


def test_a_second_of_a_whole_song(tmp_path: Path) -> None:
    """A song in one piece overflows the stack of libsndfile's Vorbis encoder."""
    sound.write(tone(seconds=100, rate=44_100), tmp_path / "song.ogg")
    assert sound.read(tmp_path / "song.ogg").seconds == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_another_rate_is_the_same_tone(rate: int) -> None:
    middle = slice(rate // 8, rate // 4)  # the filter rings at the ends
    resampled, made = tone().resampled(rate), tone(rate=rate)
    assert resampled.samples.shape == made.samples.shape
    assert (resampled.samples[:, middle] - made.samples[:, middle]).abs().max() < 1e-4


def test_a_rate_below_the_tone_takes_it_away() -> None:
    high = tone(6_000, channels=1).resampled(8_000).samples[:, 1000:2000]
    assert high.abs().max() < 1e-3  # without a filter it would alias to 2 kHz at half of full scale


def test_loudness() -> None:
    loud = Sound(tone().samples * 5, RATE)
    assert loud.normalised().peak == pytest.approx(10 ** (-1 / 20))
    ratio = loud.normalised().samples / loud.samples
    assert ratio[loud.samples.abs() > 0.1].std() < 1e-6  # both channels alike
    assert loud.unclipped().peak < 1
    assert tone().unclipped().peak == tone().peak
    assert Sound(torch.zeros(1, 9), RATE).normalised().peak == 0


def test_too_loud_is_not_clipped(tmp_path: Path) -> None:
    sound.write(Sound(tone().samples * 5, RATE), tmp_path / "a.wav")
    back = sound.read(tmp_path / "a.wav")
    torch.testing.assert_close(back.samples, tone().samples * 2 * 10 ** (-1 / 20), atol=1e-3, rtol=0)


def test_channels() -> None:
    both = tone()
    torch.testing.assert_close(both.mono().samples[0], (both.samples[0] + both.samples[1]) / 2)
    assert torch.equal(tone(channels=1).stereo().samples, tone(channels=1).samples.repeat(2, 1))


def test_mp3_takes_the_next_rate(tmp_path: Path) -> None:
    sound.write(tone(rate=20_000), tmp_path / "a.mp3")
    assert sound.read(tmp_path / "a.mp3").rate == 22_050


def test_plays_in_a_notebook() -> None:
    assert tone()._repr_html_().startswith('<audio controls src="data:audio/wav;base64,UklGR')  # "RIFF"


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (torch.zeros(3, 9), RATE, "3 channels"),
        (torch.zeros(0, 9), RATE, "0 channels"),
        (torch.zeros(1, 0), RATE, "no sound"),
        (torch.tensor([[0.0, math.nan]]), RATE, "not finite"),
        (torch.zeros(1, 9), 7, "7 Hz"),
        (torch.zeros(1, 9), 10**7, "10000000 Hz"),
    ],
)
def test_what_is_no_sound(samples: torch.Tensor, rate: int, message: str) -> None:
    with pytest.raises(ReverieError, match=message):
        Sound(samples, rate)


def test_files_that_are_no_sound(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "some.raw").write_bytes(b"\0" * 64)
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    with wave.open(str(tmp_path / "three.wav"), "wb") as file:
        file.setparams((3, 2, RATE, 0, "NONE", ""))
        file.writeframes(b"\0" * 60)
    for name in ("text.wav", "some.raw", "empty.wav", "three.wav", "missing.wav"):
        with pytest.raises(ReverieError, match=name) as caught:
            sound.read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_header_is_not_believed(tmp_path: Path) -> None:
    """A header may say two gigabytes; what is there is what is read."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(b"\0\1" * 100)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = (0x7FFFFFF0).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert sound.read(tmp_path / "a.wav").samples.shape == (1, 100)


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("a.xyz", {}, "choose from .wav"),
        ("nowhere/a.wav", {}, "no such folder"),
        ("a.wav", {"colour": "red"}, "unknown tag 'colour'"),
        ("a.wav", {"comment": "x" * 5000}, "write .flac"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, texts: dict[str, str], message: str) -> None:
    with pytest.raises(ReverieError, match=message):
        sound.write(tone(), tmp_path / name, texts=texts)
    assert not list(tmp_path.iterdir())


def encoded_mp3(seconds: int, rate: int, channels: int) -> bytes:
    """Return an MP3 of a variable bitrate by LAME 3.100, quiet, loud and quiet again, so that no guess is right."""
    noise = np.random.default_rng(0).standard_normal((seconds * rate, channels)).astype(np.float32)
    noise *= np.repeat([1e-4, 0.2, 1e-3], -(-len(noise) // 3))[: len(noise), None]
    out = io.BytesIO()
    form = {"samplerate": rate, "channels": channels, "format": "MP3", "bitrate_mode": "VARIABLE"}
    with soundfile.SoundFile(out, "w", **form, compression_level=0.5) as file:
        file.write(noise)
    return out.getvalue()


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (22_050, 1)])
@pytest.mark.parametrize("cut", ["no Xing header", "two joined", "tagged"])
def test_mp3_lengths_are_counted(tmp_path: Path, rate: int, channels: int, cut: str) -> None:
    """As PyAV 18.1 (FFmpeg 8) decodes, but for the encoder's delay of at most two frames."""
    av = pytest.importorskip("av")
    data = encoded_mp3(6, rate, channels)
    start = data.index(data[:2], 2)  # of the second frame: the first is the Xing header's
    data = {
        "no Xing header": data[start:],
        "two joined": data * 2,
        "tagged": mp3.id3({"title": "x" * 300}) + data[start:],
    }[cut]
    (tmp_path / "a.mp3").write_bytes(data)
    with av.open(io.BytesIO(data)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert sound.duration(tmp_path / "a.mp3") == pytest.approx(samples / rate, abs=2 * 1152 / rate)
    assert sound.read(tmp_path / "a.mp3").seconds == sound.duration(tmp_path / "a.mp3")
    last = sound.read(io.BytesIO(data), samples / rate - 1, 1.0)
    assert last.samples[:, : rate // 2].abs().max() > 0


def test_sixteen_bits_are_rounded(tmp_path: Path) -> None:
    """Half a step at most and none on the mean; libsndfile 1.2.2 alone takes WAV's levels down by half a step."""
    given = Sound(torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)) * 2 - 1, RATE)
    for suffix in (".wav", ".flac"):
        sound.write(given, tmp_path / f"a{suffix}")
        error = (sound.read(tmp_path / f"a{suffix}").samples - given.samples) * 32768
        assert error[given.samples < 32767 / 32768].abs().max() <= 0.5 + 1e-3
        assert abs(error.mean()) < 0.02


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_wav_from_a_pipe_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    """0: a header that is never completed; 2 GB: SoX 14.4.2; 4 GB: FFmpeg to a pipe."""
    sound.write(given := tone(), tmp_path / "a.wav")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = size.to_bytes(4, "little")
    (tmp_path / "pipe.wav").write_bytes(data)
    for source in (tmp_path / "pipe.wav", io.BytesIO(data)):
        assert torch.equal(sound.read(source).samples, sound.read(tmp_path / "a.wav").samples)
        assert sound.duration(source) == given.seconds


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_a_file_that_is_cut_off_is_said(tmp_path: Path, suffix: str) -> None:
    sound.write(tone(seconds=4), tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=rf"half{suffix}' is cut off: (50|60)% of the sound"):
        half = sound.read(tmp_path / f"half{suffix}")
    assert half.seconds == pytest.approx({".wav": 2, ".mp3": 2.4}[suffix], abs=0.1)


def test_mp3_tags_are_in_unicode(tmp_path: Path) -> None:
    """ID3v2.4.0, 4: text encoding 3 is UTF-8; read back by FFmpeg, through PyAV 18.1."""
    av = pytest.importorskip("av")
    texts = {
        "title": "爵士 — für Élise",
        "artist": "Дюк",
        "comment": '{"prompt": "爵士"}',
        "album": "á",
        "date": "2026",
    }
    sound.write(tone(), tmp_path / "a.mp3", texts=texts)
    with av.open(str(tmp_path / "a.mp3")) as file:
        assert {name: file.metadata[name] for name in texts} == texts
    assert sound.read_texts(tmp_path / "a.mp3").items() >= texts.items()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_a_full_disk_is_one_line(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    """/dev/full takes no byte (Linux, full(4)); exceptions in libsndfile's callbacks would be printed by cffi."""
    given, target = tone(seconds=3), tmp_path / f"a{suffix}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: open("/dev/full", "w+b"))  # noqa: PTH123, SIM115
        with pytest.raises(ReverieError, match=rf"^cannot write '.*a\{suffix}': the disk is full$"):
            sound.write(given, target)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_what_ffmpeg_reads_is_heard(form: str, tmp_path: Path) -> None:
    """Voice memos of telephones are AAC in MP4, which libsndfile does not read."""
    av = pytest.importorskip("av")
    given, file = tone(seconds=1, channels=1), tmp_path / "memo.m4a"
    with av.open(str(file), "w", format=form) as made:
        stream = made.add_stream("aac", rate=RATE, layout="mono", bit_rate=128_000)
        frame = av.AudioFrame.from_ndarray(given.samples.numpy(), format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode()):
            made.mux(packet)
    heard = sound.read(file)
    assert (heard.rate, heard.channels) == (RATE, 1)
    spectrum = torch.fft.rfft(heard.samples[0, :RATE]).abs()
    assert spectrum.argmax().item() == 440
    assert sound.read(io.BytesIO(file.read_bytes())).samples.equal(heard.samples)


def test_an_mp3_behind_junk_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sound.write(tone(), tmp_path / "a.mp3")
    stream = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "junk.mp3").write_bytes(b"\0\0\0\0some words" + stream)
    assert sound.read(tmp_path / "junk.mp3").samples.equal(sound.read(tmp_path / "a.mp3").samples)
    (tmp_path / "words.mp3").write_bytes(b"only words, again and again. " * 99)
    with pytest.raises(ReverieError, match="no sound that is known"):
        sound.read(tmp_path / "words.mp3")
    assert capfd.readouterr().err == ""  # libsndfile's decoder would have told of its search
