"""Does `reverie inspect` tell what a file is: models, parts of them, what goes beside them, and pictures?"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from reverie.checkpoints.compvis import ema_name
from reverie.checkpoints.description import Description, describe
from reverie.checkpoints.identify import AUTOENCODER
from reverie.checkpoints.load import LORA, load_folder
from reverie.checkpoints.single import Networks, load_file
from reverie.cli.app import run
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.errors import ReverieError
from reverie.media import sound, video
from reverie.media.pictures import save
from reverie.media.sound import Sound
from reverie.pipeline import Pipeline
from reverie.requests.films import Animation
from reverie.requests.music import Music
from reverie.requests.pictures import TextToImage
from reverie.requests.records import texts
from reverie.requests.references import BUNDLED, CLIP_FOLDER, CLIP_NAME

Writer = Callable[[str], tuple[Path, Networks]]


def test_single_file(single_file: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    file, networks = single_file("sdxl")
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {"sdxl": networks.family})
    tensors = read_tensors(file)
    halved = {name: tensor.half() if name.startswith("model.") else tensor for name, tensor in tensors.items()}
    save_file(halved | {"model_ema.diffusion_modelx": torch.zeros(5)}, file)
    modules = (networks.unet, networks.autoencoder, *networks.text_encoders)
    assert describe(file) == Description(
        path=str(file),
        kind="model",
        title="Stable Diffusion XL",
        family="sdxl",
        prediction="eps",
        resolution=32,
        dtypes=("float16", "float32"),
        parameters=sum(tensor.numel() for module in modules for tensor in module.state_dict().values()),
        tensors=len(tensors),
        size=file.stat().st_size,
        averages=True,
    )


def test_stable_diffusion_2_is_in_doubt(single_file: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    file, networks = single_file("sd2")
    eps, v = networks.family, replace(networks.family, schedule=ScheduleConfig(prediction="v"))
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {"sd2": eps, "sd21-v": v})
    told = describe(file)
    assert (told.prediction, told.resolution) == (None, None)
    assert "eps (512 px) or v (768 px)" in told.notes[0]


def test_folders(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    whole = describe(tmp_path)
    assert (whole.kind, whole.family, whole.prediction, whole.resolution) == ("model", None, "eps", 32)
    assert whole.title == "a model of its own kind, in diffusers' layout"
    assert whole.parameters == sum(
        tensor.numel()
        for module in (tiny.unet, tiny.autoencoder, *tiny.text_encoders)
        for tensor in module.state_dict().values()
    )
    assert describe(tmp_path / "vae").kind == "vae"
    with pytest.raises(ReverieError, match=r"holds no model_index.json and no part"):
        describe(tmp_path / "tokenizer")
    shutil.rmtree(tmp_path / "vae")
    assert (describe(tmp_path).missing, describe(tmp_path).resolution) == ((AUTOENCODER,), None)
    with pytest.raises(ReverieError, match="no file or folder at"):
        describe(tmp_path / "nowhere")


DOWN = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k"
OF_SD1 = ("3 vectors of width 768", "for Stable Diffusion 1.x")
OTHERS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[str, ...]]] = {
    "lora of 1": ("lora", {DOWN: (8, 768)}, ("rank 8", "for Stable Diffusion 1.x")),
    "lora of xl": ("lora", {DOWN: (8, 2048), f"x{DOWN}": (4, 9)}, ("ranks 4 to 8", "for Stable Diffusion XL")),
    "text encoders of today": ("lora", {"text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 768)}, ("rank 4",)),
    "full differences": ("lora", {f"{LAYER}.diff": (8, 8), f"{LAYER}.diff_b": (8,)}, ("full differences, biases",)),
    "norms": ("lora", {"lora_unet_conv_norm_out.w_norm": (8,), "lora_unet_conv_norm_out.b_norm": (8,)}, ("norms",)),
    "(IA)3": ("lora", {f"{LAYER}.weight": (8,), f"{LAYER}.on_input": ()}, ("(IA)3",)),
    "OFT": ("lora", {f"{LAYER}.oft_blocks": (2, 4, 4), f"{LAYER}.alpha": ()}, ("OFT",)),
    "GLoRA": ("lora", {f"{LAYER}.a1.weight": (8, 2), f"{LAYER}.a2.weight": (2, 8)}, ("GLoRA",)),
    "LoKr with DoRA": (
        "lora",
        {f"{LAYER}.lokr_w1": (2, 2), f"{LAYER}.lokr_w2": (4, 4), f"{LAYER}.dora_scale": (8, 1)},
        ("LoKr, DoRA",),
    ),
    "an embedding of OneTrainer's": ("embedding", {"emp_params": (3, 768)}, OF_SD1),
    "IP-Adapter with a LoRA": ("ip-adapter", {"ip_adapter.0.to_q_lora.down.weight": (4, 320)}, ()),
    "embedding": ("embedding", {"emb_params": (3, 1024)}, ("3 vectors of width 1024", "for Stable Diffusion 2.x")),
    "embedding of xl": (
        "embedding",
        {"clip_l": (2, 768), "clip_g": (2, 1280)},
        ("2 vectors of width 768 and 1280", "for Stable Diffusion XL"),
    ),
    "controlnet": (
        "controlnet",
        {
            "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
            "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        },
        ("for Stable Diffusion 1.x",),
    ),
    "taesd": ("taesd", {"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, ()),
    "vae": ("vae", {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}, ()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_goes_beside_a_model(name: str, tmp_path: Path) -> None:
    kind, shapes, notes = OTHERS[name]
    tensors: dict[str, Tensor] = {key: torch.zeros(shape) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    told = describe(tmp_path / "x.safetensors")
    assert (told.kind, told.dtypes) == (kind, ("float32",))
    assert set(notes) <= set(told.notes)


def test_nothing_is_no_embedding(tmp_path: Path) -> None:
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(ReverieError, match="holds no model that reverie knows"):
        describe(tmp_path / "x.safetensors")
    save_file({"emb_params": torch.zeros(())}, tmp_path / "x.safetensors")
    assert describe(tmp_path / "x.safetensors").kind == "embedding"


def test_the_command(tiny: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.save(tmp_path / "model")
    assert run(["inspect", str(tmp_path / "model")]) == 0
    told = capsys.readouterr().out
    assert "kind: model\n" in told
    assert "resolution: 32 px\n" in told
    assert "size: 0." in told
    assert run(["inspect", str(tmp_path / "model/unet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "unet"
    assert run(["inspect", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_known_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All that computes is counted: what a model shares with another too, and a LoRA on it."""
    assert run(["inspect", name, "--json"]) == 0
    found, loaded = json.loads(capsys.readouterr().out), load_folder(BUNDLED[name])
    assert (found["kind"], found["missing"]) == ("model", [])
    assert found["resolution"] == loaded.unet.config.sample_size * loaded.autoencoder.factor
    networks = [*loaded.text_encoders, loaded.unet, loaded.autoencoder]
    lora = sum(tensor.numel() for tensor in read_tensors(BUNDLED[name] / LORA).values()) if "music-t" in name else 0
    assert found["parameters"] == sum(p.numel() for network in networks for p in network.parameters()) + lora


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.new("RGB", (64, 32))
    picture.info.update(texts(TextToImage(prompt="a bear", seed=7, guidance=2, width=64, height=32), "emoji"))
    save(picture, tmp_path / "ours.png")
    assert run(["inspect", str(tmp_path / "ours.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["model"], told["width"], told["request"]["prompt"]) == ("picture", "emoji", 64, "a bear")
    assert run(["inspect", str(tmp_path / "ours.png")]) == 0
    assert "model: emoji\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["f.mp4", "f.webm", "f.gif", "f.webp", "frames", "sheet.png"])
def test_films_tell_how_they_were_made(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Animation(keyframes=("a bear", "an apple"), seed=1)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    video.write(frames, tmp_path / name, 10, texts=texts(asked, "mine"))
    assert run(["inspect", str(tmp_path / name), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["model"], told["request"]) == ("film", "mine", asked.to_record())
    if name != "sheet.png":
        assert (told["width"], told["height"]) == (16, 16)
    assert run(["inspect", str(tmp_path / name)]) == 0
    assert "kind: film" in capsys.readouterr().out


def test_films_of_others_and_music(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video.write([Image.new("RGB", (16, 16))] * 3, tmp_path / "f.mp4", 10)
    assert run(["inspect", str(tmp_path / "f.mp4"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["fps"], told["request"]) == (3, 10, None)
    asked = Music(prompt="jazz", seed=1)
    sound.write(Sound(torch.zeros(1, 800), 8000), tmp_path / "a.wav", texts=texts(asked, "mine"))
    assert run(["inspect", str(tmp_path / "a.wav"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["model"], told["request"]) == ("music", "mine", asked.to_record())
    (tmp_path / "bad.mp4").write_bytes(b"x")
    assert run(["inspect", str(tmp_path / "bad.mp4")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_folders_of_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = describe(CLIP_NAME)
    assert told.path == str(CLIP_FOLDER)
    assert (told.kind, told.resolution) == (
        "clip",
        json.loads((CLIP_FOLDER / "config.json").read_text())["vision_config"]["image_size"],
    )
    (tmp_path / "open_clip_model.safetensors").write_bytes((CLIP_FOLDER / "model.safetensors").read_bytes())
    other = describe(tmp_path)
    assert (other.kind, other.parameters) == ("clip", told.parameters)


WIDE = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
KEY = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
DEEP = "model.diffusion_model.input_blocks.7.1.transformer_blocks.{}.attn2.to_k.weight"
ADDED = "model.diffusion_model.label_emb.0.0.weight"
SDXL = {KEY: (320, 2048), ADDED: (1280, 2816)}


def first(channels: int, width: int = 320) -> dict[str, tuple[int, ...]]:
    return {"model.diffusion_model.input_blocks.0.0.weight": (width, channels, 3, 3)}


# By the shapes of the published files: ComfyUI 0.3.64 supported_models.py and diffusers 0.42.1 single_file_utils.py.
NOT_DRAWN: dict[str, dict[str, tuple[int, ...]]] = {
    "Stable Zero123": first(8) | {KEY: (320, 768), "cc_projection.weight": (768, 772)},
    "Stable Video Diffusion": first(8)
    | {KEY: (320, 1024), "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": (320,)},
    "a transformer (Stable Diffusion 3, Flux or the like)": {"model.diffusion_model.joint_blocks.0.x_block.w": (4, 4)},
    "a ControlNet-LLLite": {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": (64, 640)},
    "an IP-Adapter": {"image_proj.norm.weight": (768,), "ip_adapter.1.to_k_ip.weight": (320, 768)},
    "an upscaler": {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
    "a TAESD (tiny autoencoder) of 32 latent channels": {"1.weight": (64, 32, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)},
    "a TAESD (tiny autoencoder) of 16 latent channels": {"decoder.layers.0.weight": (64, 16, 3, 3)},
    "an autoencoder (VAE) of 32 latent channels": {"decoder.conv_in.weight": (512, 32, 3, 3)},
    "a text encoder (T5)": {"encoder.block.0.layer.0.SelfAttention.q.weight": (64, 64)},
    "a safety checker": {"concept_embeds": (17, 768), "vision_model.vision_model.embeddings.class_embedding": (1024,)},
}


@pytest.mark.parametrize("title", NOT_DRAWN)
def test_what_is_not_drawn_with_is_named(title: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.int8) for key, shape in NOT_DRAWN[title].items()}, file)
    described = describe(file)
    assert described.title == title
    assert described.family is None
    with pytest.raises(ReverieError, match=re.escape(f"is {title}; ")) as raised:
        load_file(file)
    assert "fetch it again" not in str(raised.value)


READ = {  # what a command takes: kinds of LoRA, LAION's aesthetic predictors
    "a LoRA": [
        {"lora_unet_mid_block_attentions_0_proj_in.diff": (64, 64)},
        {"lora_unet_conv_norm_out.w_norm": (320,), "lora_unet_conv_norm_out.b_norm": (320,)},
        {"lora_unet_x_attn1_to_k.on_input": (1,), "lora_unet_x_attn1_to_k.weight": (320, 1)},
        {"lora_unet_x.oft_blocks": (4, 80, 80)},
        {"unet.down_blocks.0.attentions.0.to_k.lora_A.weight": (4, 320)},
    ],
    "an aesthetic predictor on CLIP's embeddings": [
        {"weight": (1, 768), "bias": (1,)},
        {"layers.0.weight": (1024, 768), "layers.0.bias": (1024,), "layers.7.weight": (1, 16), "layers.7.bias": (1,)},
    ],
    "an embedding (textual inversion)": [{"bundle_emb.cat.string_to_param.*": (4, 768)}],
}


@pytest.mark.parametrize("title", READ)
def test_what_commands_read_is_known(title: str, tmp_path: Path) -> None:
    for shapes in READ[title]:
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "x.safetensors")
        assert describe(tmp_path / "x.safetensors").title == title


def test_parts_of_models(single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkpoint without its autoencoder, one of running averages alone, and a U-Net alone say what they lack."""
    file, networks = single_file("sd15")
    tensors = read_tensors(file)
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {"sd15": networks.family})
    bare = tmp_path / "bare.safetensors"
    save_file({name: x for name, x in tensors.items() if not name.startswith("first_stage_model.")}, bare)
    assert (describe(bare).kind, describe(bare).missing) == ("model", ("autoencoder (VAE)",))
    with pytest.raises(ReverieError, match=r"without autoencoder \(VAE\); give one as vae"):
        load_file(bare)
    whole = load_file(bare, vae=file)
    assert whole.autoencoder.decoder.conv_in.weight.equal(networks.autoencoder.decoder.conv_in.weight)
    kept = {ema_name(name) if name.startswith("model.") else name: x for name, x in tensors.items()}
    save_file(kept, tmp_path / "ema.safetensors")
    averages = describe(tmp_path / "ema.safetensors")
    assert (averages.kind, averages.family, averages.missing) == ("model", "sd15", ())
    assert load_file(tmp_path / "ema.safetensors").unet.conv_in.weight.equal(networks.unet.conv_in.weight)
    unet = {name: x for name, x in tensors.items() if name.startswith("model.")}
    save_file(unet, tmp_path / "unet.safetensors")
    assert describe(tmp_path / "unet.safetensors").title == "the U-Net of Stable Diffusion 1.x alone"
    with pytest.raises(ReverieError, match=r"is the U-Net of Stable Diffusion 1.x alone without"):
        load_file(tmp_path / "unet.safetensors", vae=file)


def test_other_programs_names_of_the_parts(
    single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Diffusers' folders merged into one file, and ComfyUI's and stable-diffusion.cpp's prefixes."""
    file, networks = single_file("sd15")
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {"sd15": networks.family})
    parts = {"unet": networks.unet, "vae": networks.autoencoder, "text_encoder": networks.text_encoders[0]}
    merged = {f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()}
    save_file(merged, tmp_path / "merged.safetensors")
    prefixes = {"model.diffusion_model.": "diffusion_model.", "first_stage_model.": "vae."}
    other = read_tensors(file)
    for old, new in (prefixes | {"cond_stage_model.": "text_encoders.clip_l."}).items():
        other = {name.replace(old, new) if name.startswith(old) else name: x for name, x in other.items()}
    save_file(other, tmp_path / "other.safetensors")
    for name in ("merged", "other"):
        loaded = load_file(tmp_path / f"{name}.safetensors")
        for module, copy in zip(
            parts.values(), (loaded.unet, loaded.autoencoder, loaded.text_encoders[0]), strict=True
        ):
            assert all(x.equal(copy.state_dict()[key]) for key, x in module.state_dict().items())


# What stable-diffusion.cpp 97d2990 (src/name_conversion.cpp) calls the parts of OpenCLIP's text tower.
OPEN_CLIP = {
    "model.ln_final.": "transformer.text_model.final_layer_norm.",
    "model.positional_embedding": "transformer.text_model.embeddings.position_embedding.weight",
    "model.token_embedding.weight": "transformer.text_model.embeddings.token_embedding.weight",
    "model.text_projection": "transformer.text_model.text_projection",
    "model.transformer.resblocks.": "transformer.text_model.encoder.layers.",
}
LAYER = {
    "attn.in_proj_": "self_attn.in_proj.",
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
CONVERTED = {"conditioner.embedders.0.": "cond_stage_model.", "conditioner.embedders.1.": "cond_stage_model.1."}


def converted(name: str) -> str:
    """Rename as `sd -M convert --convert-name` does."""
    for old, new in CONVERTED.items():
        name = new + name.removeprefix(old) if name.startswith(old) else name
    if not name.startswith("cond_stage_model.") or "model.transformer.text_model." in name:
        return name
    for table in (OPEN_CLIP, LAYER):
        for old, new in table.items():
            name = name.replace(old, new)
    return name


@pytest.mark.parametrize("family", ["sd15", "sd21-v", "sdxl", "sdxl-refiner"])
def test_names_that_stable_diffusion_cpp_converted(
    single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str
) -> None:
    file, networks = single_file(family)
    tensors = read_tensors(file)
    renamed = {converted(name): x for name, x in tensors.items()}
    assert len(renamed) == len(tensors)
    assert (renamed.keys() == tensors.keys()) == (family == "sd15")  # whose names are what it converts to
    save_file(renamed, tmp_path / "converted.safetensors")
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {family: networks.family})
    loaded = load_file(tmp_path / "converted.safetensors", config=networks.family)
    for module, copy in zip(
        (networks.unet, networks.autoencoder, *networks.text_encoders),
        (loaded.unet, loaded.autoencoder, *loaded.text_encoders),
        strict=True,
    ):
        assert all(x.equal(copy.state_dict()[key]) for key, x in module.state_dict().items())
    assert describe(tmp_path / "converted.safetensors").missing == ()


@pytest.mark.parametrize("named", ["te.1.", "cond_stage_model.transformer.1."])
def test_folders_that_stable_diffusion_cpp_made_a_file_of(
    single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    """Without `--convert-name` its prefixes stay, and with it the second tower gets this one."""
    _, networks = single_file("sdxl")
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {"sdxl": networks.family})
    first = "te." if named == "te.1." else "cond_stage_model.transformer."
    parts = {"unet.": networks.unet, "vae.": networks.autoencoder, first: networks.text_encoders[0]}
    parts[named] = networks.text_encoders[1]
    save_file(
        {prefix + key: x.contiguous() for prefix, module in parts.items() for key, x in module.state_dict().items()},
        tmp_path / "folder.safetensors",
    )
    loaded = load_file(tmp_path / "folder.safetensors")
    for module, copy in zip(networks.text_encoders, loaded.text_encoders, strict=True):
        assert all(x.equal(copy.state_dict()[key]) for key, x in module.state_dict().items())
