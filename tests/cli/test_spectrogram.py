"""Do the commands turn sound into pictures and back, and refuse in one line?"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from reverie.cli.app import BAD_INPUT, run
from reverie.media import sound
from reverie.media.pictures import open_picture
from reverie.media.sound import Sound


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Write a tone that fades, left at 440 Hz and right at 880 Hz."""
    time = torch.arange(12_000) / 16_000
    tones = [torch.sin(2 * math.pi * hertz * time) * torch.exp(-3 * time) / 2 for hertz in (440, 880)]
    sound.write(Sound(torch.stack(tones), 16_000), tmp_path / "song.wav")
    return tmp_path / "song.wav"


@pytest.mark.parametrize(("options", "channels"), [([], 2), (["--stereo"], 2), (["--mono"], 1)])
def test_there_and_back(song: Path, options: list[str], channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    picture, back = song.with_suffix(".png"), song.with_name("back.flac")
    assert run(["spectrogram", str(song), "-o", str(picture), "--small", *options]) == 0
    assert run(["sound", str(picture), "-o", str(back)]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(picture), str(back)]
    assert told.err == ""
    heard = sound.read(back)
    assert (heard.rate, heard.channels) == (16_000, channels)
    assert heard.samples.shape[1] == 37 * 320  # 12,000 samples are 37 whole columns
    spectrum = torch.fft.rfft(heard.samples[-1, :8_000]).abs()  # 2 Hz a bin
    assert spectrum.argmax().item() * 2 == pytest.approx(
        880 if channels == 2 else 660, abs=10 if channels == 2 else 230
    )


def test_a_long_picture_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.linear_gradient("L").resize((1000, 128)).save(tmp_path / "long.png")
    monkeypatch.setattr("reverie.music.sections.NUMBERS", 1)
    monkeypatch.setattr("reverie.cli.progress.PLAIN_INTERVAL", 0.0)
    assert run(["sound", str(tmp_path / "long.png"), "-o", str(tmp_path / "a.wav"), "--small"]) == 0
    assert "sections 2/" in (told := capsys.readouterr().err)
    assert "/s, " in told
    assert " s left" in told
    assert sound.read(tmp_path / "a.wav").seconds == pytest.approx(20)


def test_riffusions_size_and_axes(song: Path) -> None:
    for name, options in (("a.png", ["--mono"]), ("axes.png", ["--mono", "--axes"]), ("both.png", ["--axes"])):
        assert run(["spectrogram", str(song), "-o", str(song.with_name(name)), *options]) == 0
    plain, axes, both = (open_picture(song.with_name(name)) for name in ("a.png", "axes.png", "both.png"))
    assert plain.size == (75, 512)
    assert axes.width > 75
    assert 512 < axes.height < 2 * 512 < both.height


def test_a_picture_that_does_not_tell_is_taken_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.linear_gradient("L").resize((40, 128)).save(tmp_path / "ramp.png")
    assert run(["sound", str(tmp_path / "ramp.png"), "-o", str(tmp_path / "a.wav"), "--small", "--loop"]) == 0
    error = capsys.readouterr().err
    assert "taken for one" in error
    assert len(error.splitlines()) == 1
    assert sound.read(tmp_path / "a.wav").samples.shape[1] == 40 * 320


def test_a_sound_that_is_cut_off_is_told_of_in_a_line(song: Path, capsys: pytest.CaptureFixture[str]) -> None:
    song.write_bytes(song.read_bytes()[: song.stat().st_size // 2])
    assert run(["spectrogram", str(song), "-o", str(song.with_suffix(".png")), "--small"]) == 0
    assert capsys.readouterr().err == f"'{song}' is cut off: 50% of the sound that its header tells of is there\n"


def test_refusals(song: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, tall = song.with_name("short.wav"), song.with_name("tall.png")
    sound.write(Sound(torch.zeros(1, 100), 16_000), short)
    Image.new("RGB", (40, 100)).save(tall)
    for arguments, told in (
        (["spectrogram", str(song), "-o", "a.gif"], "names no picture format"),
        (["spectrogram", str(tall), "-o", "a.png"], "no sound that is known"),
        (["spectrogram", str(short), "-o", "a.png"], "too short"),
        (["sound", str(tall), "-o", "a.mid"], "unknown sound format"),
        (["sound", str(song), "-o", "a.wav"], "not a picture"),
        (["sound", str(tall), "-o", "a.wav"], "100 pixels high"),
    ):
        assert run(arguments) == BAD_INPUT
        assert told in capsys.readouterr().err.splitlines()[-1]
