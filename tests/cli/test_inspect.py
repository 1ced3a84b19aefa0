"""`reverie inspect` of pictures that reverie did not make, or that say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reverie.cli.app import run


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("suffix", ["avif", "tif", "bmp"])
def test_pictures_without_settings(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / f"x.{suffix}")
    told = inspect(tmp_path / f"x.{suffix}", capsys)
    assert (told["kind"], told["width"], told["height"], told["request"]) == ("picture", 64, 48, None)
    assert "does not say how it was made" in told["not_honoured"][0]


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
