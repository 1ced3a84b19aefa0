"""Do the flags for pictures, masks and passes mean the requests they say, and does replay make the same again?"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

import reverie
from reverie.cli.app import run
from reverie.media.pictures import open_picture
from reverie.models.autoencoder import TinyAutoencoder, TinyConfig
from reverie.models.clip import CLIPVisionConfig, SafetyChecker, SafetyConfig
from reverie.models.controlnet import ControlNet, ControlNetConfig
from reverie.requests.parts import Hires, Refiner, Variation
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint

from .conftest import UNET


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out a picture, a mask and a sketch that is half transparent, in the present folder."""
    monkeypatch.chdir(tmp_path)
    init = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    init.save("init.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 24))
    mask.save("mask.png")
    sketch = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    sketch.paste(init.crop((0, 0, 32, 16)), (0, 0))
    sketch.save("sketch.png")


def draw(model: str, *arguments: str) -> int:
    return run(["image", "a bear", "-o", "bear.png", "--model", model, "--seed", "7", "--steps", "4", *arguments])


@pytest.mark.parametrize(
    ("arguments", "kind", "fields"),
    [
        (["--init", "init.png"], ImageToImage, {"strength": 0.75, "width": 32}),
        (["--init", "init.png", "--strength", "0.5"], ImageToImage, {"strength": 0.5}),
        (
            ["--init", "init.png", "--mask", "mask.png", "--mask-blur", "2", "--only-masked", "--padding", "4"],
            Inpaint,
            {"mask_blur": 2, "only_masked": True, "padding": 4, "fill": "original"},
        ),
        (["--init", "sketch.png", "--fill", "nothing"], Inpaint, {"mask": None, "fill": "nothing"}),
        (["--init", "sketch.png"], Inpaint, {"mask": None}),
        (["--init", "init.png", "--outpaint", "8"], Outpaint, {"left": 8, "bottom": 8, "width": 48, "strength": 1.0}),
        (["--init", "init.png", "--outpaint", "left=8,top=16"], Outpaint, {"left": 8, "right": 0, "top": 16}),
        (
            ["--subseed", "3", "--subseed-strength", "0.25", "--seed-size", "64x48"],
            reverie.TextToImage,
            {"variation": Variation(seed=3, strength=0.25, width=64, height=48)},
        ),
        (["--hires", "1.5"], reverie.TextToImage, {"hires": Hires(scale=1.5, width=48, height=48)}),
        (
            ["--hires", "48x40", "--hires-upscaler", "lanczos", "--hires-steps", "2", "--hires-strength", "0.5"],
            reverie.TextToImage,
            {"hires": Hires(width=48, height=40, upscaler="lanczos", steps=2, strength=0.5)},
        ),
        (["--tile", "xy", "--crop", "8x0"], reverie.TextToImage, {"tile": "xy", "crop": (8, 0)}),
    ],
)
def test_flags_make_requests_that_replay(
    model: str, arguments: list[str], kind: type[reverie.TextToImage], fields: dict[str, object]
) -> None:
    assert draw(model, *arguments) == 0
    request = reverie.from_metadata("bear.png")
    assert type(request) is kind
    assert {name: getattr(request, name) for name in fields} == fields
    assert run(["replay", "bear.png", "--model", model]) == 0
    with Image.open("bear.png") as a, Image.open("bear-replay.png") as b:
        assert a.size == b.size
        assert ImageChops.difference(a, b).getbbox() is None


def test_a_refiner_takes_over(model: str) -> None:
    assert draw(model, "--refiner", model, "--refiner-switch", "0.5") == 0
    named = Refiner(model=Path(model).name, switch=0.5)  # a file says the name, and no folder
    assert reverie.from_metadata("bear.png").refiner == named


def test_another_refiner_of_that_name_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault 40: models beside the first were written down by name alone."""
    shutil.copytree(model, "finer")
    assert draw(model, "--refiner", "finer") == 0
    assert set(dict(reverie.from_metadata("bear.png").sums)) == {"finer"}
    assert run(["replay", "bear.png", "--model", model]) == 0
    assert "is not the model that it was" not in capsys.readouterr().err
    weights = load_file("finer/unet/diffusion_pytorch_model.safetensors")
    save_file(
        {name: tensor * 0.5 for name, tensor in weights.items()}, "finer/unet/diffusion_pytorch_model.safetensors"
    )
    assert run(["replay", "bear.png", "--model", model]) == 0
    assert "'finer' is not the model that it was: its SHA-256 is" in capsys.readouterr().err


def test_replay_wants_the_same_picture_and_takes_it_elsewhere(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(model, "--init", "init.png", "--count", "2", "--grid") == 0
    Path("init.png").rename("moved.png")
    assert run(["replay", "bear.png", "--model", model]) == 2
    assert "the picture 'init.png' is not here" in capsys.readouterr().err
    assert run(["replay", "bear.png", "--model", model, "--init", "moved.png"]) == 0
    with Image.open("bear.png") as a, Image.open("bear-replay.png") as b:
        assert ImageChops.difference(a, b).getbbox() is None
    capsys.readouterr()
    assert run(["replay", "bear.png", "--model", model, "--init", "moved.png", "--mask", "mask.png"]) == 2
    assert "was made without mask; leave out --mask" in capsys.readouterr().err


def test_signing_is_checked_before_any_work(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert draw(model, "--c2pa", "signer") == 2
    assert "signing needs the extra: pip install 'reverie[c2pa]'" in capsys.readouterr().err
    assert not Path("bear.png").exists()


def test_files_are_signed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signed: list[tuple[bool, str, bool]] = []
    monkeypatch.setattr(
        "reverie.media.provenance.signer",
        lambda folder: lambda path, name: signed.append((path.is_file(), name, Path(name).exists())),
    )
    assert draw(model, "--c2pa", "signer", "--count", "2") == 0
    assert signed == [(True, "bear-0.png", False), (True, "bear-1.png", False)]  # before the final name is there


def test_replay_tells_that_the_model_is_another(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(model, "--vae", f"{model}/vae") == 0
    capsys.readouterr()
    assert run(["replay", "bear.png", "--model", model]) == 0
    told = r"not honoured: it was drawn by 'tiny \+ vae \[\w+\]', this is 'tiny \[\w+\]'"
    assert re.search(told, capsys.readouterr().err)
    assert run(["replay", "bear.png", "--model", model, "--vae", f"{model}/vae"]) == 0
    assert "not honoured" not in capsys.readouterr().err


def test_replay_tells_what_another_program_asked_for(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = "a bear\nSteps: 2, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 32x32, Model: x, Hypernet: y"
    info = Image.new("RGB", (8, 8))
    info.info["parameters"] = told
    reverie.save(info, "theirs.png")
    assert run(["replay", "theirs.png", "--model", model, "--json"]) == 0
    answer = capsys.readouterr()
    request = json.loads(answer.out)["request"]
    assert (request["steps"], request["sampler"], request["seed"]) == (2, "euler_ancestral", 5)
    assert "not honoured: " in answer.err


def test_previews_are_written_over(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, tuple[int, int]]] = []
    for place in ("reverie.cli.jobs.save", "reverie.jobs.pictures.save"):
        monkeypatch.setattr(place, lambda picture, path, **_: written.append((str(path), picture.size)))
    assert draw(model, "--hires", "1.5", "--preview", "look.png") == 0
    assert written == [("look.png", (32, 32)), ("look.png", (48, 48)), ("bear.png", (48, 48))]


def test_a_taesd_decodes_the_previews(model: str) -> None:
    torch.manual_seed(0)
    tiny = TinyAutoencoder(TinyConfig(encoder_width=8, decoder_width=8))
    save_file(tiny.state_dict(), "taesd.safetensors")
    assert draw(model, "--preview", "look.png") == 0
    by_colours = Path("look.png").read_bytes()
    assert draw(model, "--preview", "look.png", "--taesd", "taesd.safetensors") == 0
    with Image.open("look.png") as look:
        assert look.size == (32, 32)
    assert Path("look.png").read_bytes() != by_colours


@pytest.mark.parametrize("channels", [16, 32, 4])
def test_a_taesd_of_other_latents_is_refused_before_drawing(
    model: str, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of Stable Diffusion 3 and Flux have 16 channels, of FLUX.2 32; and an encoder alone decodes nothing."""
    tiny = TinyAutoencoder(TinyConfig(latent_channels=channels), encoder=channels == 4, decoder=channels != 4)
    save_file(tiny.state_dict(), "taesd.safetensors")
    assert draw(model, "--preview", "look.png", "--taesd", "taesd.safetensors") == 2
    found = "holds no decoder" if channels == 4 else f"decodes latents of {channels} channels"
    assert f"'taesd.safetensors' {found}, and the latents of" in capsys.readouterr().err
    assert not Path("look.png").exists()


def test_a_controlnet_steers_and_replays(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = ControlNet(ControlNetConfig(UNET, hint_widths=(4, 4, 4, 4)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = Path("control")
    folder.mkdir()
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    raw = json.loads((Path(model) / "unet/config.json").read_text())
    raw = {name: value for name, value in raw.items() if name not in ("up_block_types", "out_channels")}
    told = {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [4, 4, 4, 4]}
    (folder / "config.json").write_text(json.dumps(raw | told))
    assert draw(model) == 0
    free = open_picture("bear.png")
    assert draw(model, "--control", "model=control,image=init.png,weight=0.8,preprocessor=canny") == 0
    assert run(["replay", "bear.png", "--model", model]) == 0
    with Image.open("bear.png") as a, Image.open("bear-replay.png") as b:
        assert ImageChops.difference(a, free).getbbox() is not None
        assert ImageChops.difference(a, b).getbbox() is None
    weights = folder / "diffusion_pytorch_model.safetensors"
    sum = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert dict(reverie.from_metadata("bear.png").sums) == {"control": sum}
    save_file({name: tensor + 1 for name, tensor in network.state_dict().items()}, weights)
    capsys.readouterr()
    assert run(["replay", "bear.png", "--model", model]) == 0
    told, other = capsys.readouterr().err, hashlib.sha256(weights.read_bytes()).hexdigest()
    assert f"'control' is not the model that it was: its SHA-256 is {other} and was {sum}" in told


def test_a_watermark_is_written_and_read(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(model, "--size", "128x128", "--watermark", "machine") == 0
    capsys.readouterr()
    assert run(["watermark", "read", "bear.png"]) == 0
    assert capsys.readouterr().out == "machine\n"
    assert reverie.from_metadata("bear.png").seed == 7


@pytest.mark.parametrize(("threshold", "held"), [(-2.0, True), (2.0, False)])
def test_a_safety_checker_holds_back(
    model: str, threshold: float, held: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    checker = SafetyChecker(SafetyConfig(vision=vision, projection_dim=16))
    torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
    torch.nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    folder = Path("checker")
    folder.mkdir()
    save_file(checker.state_dict(), folder / "model.safetensors")
    raw = {"projection_dim": 16, "vision_config": asdict(vision), "text_config": {}}
    (folder / "config.json").write_text(json.dumps(raw))
    assert draw(model, "--safety", str(folder)) == 0
    assert ("held back by the safety checker" in capsys.readouterr().err) is held
    with Image.open("bear.png") as picture:
        assert (picture.convert("RGB").getbbox() is None) is held


def test_json_names_the_pictures_and_does_not_hold_them(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(model, "--init", "init.png", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["request"]["init"].keys() == {"name", "sha256"}
    assert told["request"]["init"]["name"] == "init.png"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mask", "mask.png"], "--mask is about a picture to start from; give one with --init"),
        (["--strength", "0.5"], "--strength is about a picture to start from"),
        (["--only-masked"], "--only-masked is about a picture to start from"),
        (["--outpaint", "8"], "--outpaint is about a picture to start from"),
        (["--init", "nowhere.png"], "cannot read 'nowhere.png': no such file"),
        (["--init", "init.png", "--strength", "0.1"], "strength 0.1 of 4 steps leaves none; give at least 0.25"),
        (["--init", "init.png", "--mask-blur", "3"], "nothing says where to paint"),
        (["--init", "init.png", "--outpaint", "7"], "left 7 is not possible; it should be a multiple of 8"),
        (["--init", "init.png", "--outpaint", "up=8"], "'up=8' is no border"),
        (["--init", "init.png", "--mask", "mask.png", "--fill", "red"], "unknown fill 'red'"),
        (["--hires", "big"], "size 'big' is not possible"),
        (["--hires-steps", "3"], "--hires-steps is about a second pass; ask for one with --hires 2"),
        (["--refiner-switch", "0.5"], "--refiner-switch is about a refiner"),
        (["--subseed-strength", "2"], "variation strength 2.0 is not possible"),
        (["--tile", "z"], "unknown tile 'z'"),
        (["--clip-skip", "0"], "clip_skip 0 is not possible"),
        (["--control", "edges.png"], "--control 'edges.png' is not possible; write name=value,name=value"),
        (["--control", "model=x,image=init.png,wieght=2"], "unknown control option 'wieght'; did you mean 'weight'?"),
        (["--control", "model=x"], "control image is missing"),
        (["--ip-adapter", "model=x"], "--ip-adapter 'model=x' names no picture; write image=FILE into it"),
        (["--preview", "look.gif"], "choose from .png"),
        (["--taesd", "taesd"], "--taesd is about the preview; ask for one with --preview"),
        (["--watermark", ""], "--watermark '' says nothing"),
        (["--init", "init.png", "--outpaint", "-8"], "--outpaint '-8' is not possible; write 64, or left=64"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reverie, "load", None, raising=False)
    assert draw("nowhere", *arguments) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["image", "a bear", "--init", "init.png", "-o", "init.png"],
        ["image", "a bear", "--init", "init.png", "--mask", "mask.png", "-o", "./mask.png"],
        ["watermark", "write", "init.png", "-o", "init.png"],
        ["animate", "a bear @image init.png", "a cat", "-o", "init.png"],
    ],
)
def test_an_output_that_is_an_input_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("init.png").read_bytes()
    assert run(words) == 2
    assert "is an input and would be written over; name another output" in capsys.readouterr().err
    assert Path("init.png").read_bytes() == before
