"""`reverie upscale`, and a learned upscaler for the second pass of `reverie image`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from reverie.cli.app import run
from reverie.media.pictures import open_picture
from reverie.models.upscalers import CompactConfig, SRVGGNet
from reverie.requests.pictures import TextToImage
from reverie.requests.records import from_metadata


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({"params": SRVGGNet(CompactConfig(features=4, layers=1)).state_dict()}, "4x.pth")


def test_a_picture_is_enlarged(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 10), "red").save("small.png")
    assert run(["upscale", "small.png", "--model", "4x.pth", "-o", "large.png"]) == 0
    assert run(["upscale", "small.png", "--model", "4x.pth", "-o", "three.webp", "--scale", "3"]) == 0
    assert (open_picture("large.png").size, open_picture("three.webp").size) == ((80, 40), (60, 30))
    for arguments, says in (
        (["small.png", "--model", "small.png", "-o", "x.png"], "is no file of weights"),
        (["small.png", "--model", "4x.pth", "-o", "small.png"], "is an input"),
        (["small.png", "--model", "4x.pth", "-o", "x.png", "--scale", "0"], "scale 0.0 is not possible"),
        (["4x.pth", "--model", "4x.pth", "-o", "x.png"], "cannot read '4x.pth'"),
    ):
        capsys.readouterr()
        assert run(["upscale", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_a_second_pass_takes_a_learned_upscaler(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = ["image", "a bear", "--model", model, "--seed", "1", "--steps", "2", "--hires", "2", "-o", "out.png"]
    assert run([*drawing, "--hires-upscaler", "4x.pth"]) == 0
    request = from_metadata("out.png")
    assert isinstance(request, TextToImage)
    assert request.hires is not None
    assert Path(request.hires.upscaler).name == "4x.pth"
    assert request.sums[0][0] == "4x.pth"
    assert "Hires upscaler: 4x" in open_picture("out.png").info["parameters"]
    assert run(["replay", "out.png", "--model", model, "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    assert run([*drawing, "--hires-upscaler", "lanczos"]) == 0
    assert Path("again.png").read_bytes() != Path("out.png").read_bytes()
    capsys.readouterr()
    assert run([*drawing, "--hires-upscaler", "esrgan"]) == 2
    assert "unknown upscaler 'esrgan'; choose from latent, " in capsys.readouterr().err
    assert run([*drawing, "--hires-upscaler", "missing.pth"]) == 2
