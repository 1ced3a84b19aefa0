"""`reverie inspect` of pictures that reverie did not make, or that say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reverie.cli.app import run


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("suffix", ["avif", "tif", "bmp", "ppm", "tga", "jp2"])
def test_pictures_without_settings(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / f"x.{suffix}")
    told = inspect(tmp_path / f"x.{suffix}", capsys)
    assert (told["kind"], told["width"], told["height"], told["request"]) == ("picture", 64, 48, None)
    assert "does not say how it was made" in told["not_honoured"][0]


@pytest.mark.parametrize(
    ("name", "head", "told"),
    [
        ("x.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture, which is not read as a picture"),
        ("photo", b"\0\0\0\x1cftypmif1", "a HEIC picture"),
        ("x.jxl", b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        ("x.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        ("x.exr", b"v/1\x01\2\0\0\0", "an OpenEXR picture"),
        ("x.pdf", b"%PDF-1.4\n", "a PDF document"),
        ("x.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's raw picture"),
        ("x.jpg", b"<!DOCTYPE html><html>", "a web page"),
        ("x.png", b"\0\0\0\x20ftypisom", "a film"),
        ("x.safetensors", b"<!DOCTYPE html><html>", "is a web page; reverie reads"),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("x.safetensors", b"", "is empty"),
        ("x.mp4", b"<!DOCTYPE html><html>", "no film that is known, or damaged"),
        ("x.mp3", b"<!DOCTYPE html><html>", "no sound that is known, or damaged"),
    ],
)
def test_what_a_file_is_instead_is_said(
    name: str, head: bytes, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Signatures: ISO 23008-12 (HEIF), ISO 18181-2 (JPEG XL), OpenEXR's file layout, git-lfs' specification."""
    (tmp_path / name).write_bytes(head)
    assert run(["inspect", str(tmp_path / name)]) == 2
    said = capfd.readouterr()  # of C libraries too
    assert told in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff", "m4a"])
def test_sounds_without_settings(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, samples = tmp_path / f"x.{suffix}", np.zeros((1, 16_000), np.float32)
    if suffix == "m4a":
        av = pytest.importorskip("av")
        with av.open(str(file), "w", format="mp4") as made:
            stream = made.add_stream("aac", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 16_000
            for packet in (*stream.encode(frame), *stream.encode()):
                made.mux(packet)
    else:
        soundfile.write(file, samples.T, 16_000)
    told = inspect(file, capsys)
    assert (told["kind"], told["rate"], told["channels"], told["request"]) == ("sound", 16_000, 1, None)
    assert told["seconds"] == pytest.approx(1, abs=0.15)  # AAC begins with silence


def test_a_spectrogram_is_told_by_its_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Riffusion's EXIF tags, riffusion/spectrogram_params.py."""
    exif = Image.Exif()
    exif[11_000] = 44_100
    Image.new("RGB", (64, 48)).save(tmp_path / "x.png", exif=exif)
    assert inspect(tmp_path / "x.png", capsys)["kind"] == "spectrogram"


def test_pictures_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    info.add_text(
        "parameters", "a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x48, ENSD: 31337, Model: m"
    )
    Image.new("RGB", (64, 48)).save(tmp_path / "x.png", pnginfo=info)
    told = inspect(tmp_path / "x.png", capsys)
    assert (told["model"], told["request"]["sampler"], told["request"]["rng"]) == ("m", "euler_ancestral", "gpu")
    assert told["not_honoured"] == ["ENSD: 31337"]
