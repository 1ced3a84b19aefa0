"""Programs that write one JSON object, and texts that hide in pixels, XMP and EXIF."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reverie.errors import ReverieError
from reverie.requests.parts import Variation
from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record, read_record

Read = Callable[[dict[str, str]], Record]
A1111 = """a (red:1.2) bear
Negative prompt: blurry
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, Denoising strength: 0.55, \
Clip skip: 2, RNG: CPU, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Latent, Lora hashes: "bear: 0123", \
Variation seed: 3, Version: v1.6.0"""


def fields(record: Record, *names: str) -> tuple[object, ...]:
    return tuple(getattr(record.request, name) for name in names)


# SwarmUI 062407c, src/Text2Image/T2IParamInput.cs: GenFullMetadataObject
SWARMUI = {
    "sui_image_params": {
        "prompt": "a bear",
        "negativeprompt": "red",
        "model": "OfficialStableDiffusion/sd_xl_base_1.0",
        "seed": 1713,
        "steps": 24,
        "cfgscale": 6.5,
        "aspectratio": "1:1",
        "width": 512,
        "height": 640,
        "sampler": "dpmpp_2m",
        "scheduler": "karras",
        "loras": ["styles/ink", "light"],
        "loraweights": ["0.7", "1"],
        "loratencweights": ["0.5", "1"],
        "vae": "sdxl_vae",
        "freeublock1": 1.1,
        "automaticvae": True,
        "swarm_version": "0.9.6.2",
    },
    "sui_extra_data": {"date": "2025-06-01", "generation_time": "1 (prep) and 2 (gen) seconds"},
}


def test_swarmui(read_png: Read) -> None:
    record = read_png({"parameters": json.dumps(SWARMUI, indent=2)})
    assert record.request == TextToImage(
        prompt="a bear <lora:ink:0.5:0.7> <lora:light:1>",
        negative="red",
        seed=1713,
        steps=24,
        guidance=6.5,
        width=512,
        height=640,
        sampler="dpmpp_2m",
        schedule="karras",
        zero_negative=False,
        rng="cpu_then_gpu",
    )
    assert record.model == "OfficialStableDiffusion/sd_xl_base_1.0"
    assert record.notes == ("vae: sdxl_vae", "freeublock1: 1.1")


def test_swarmui_in_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(SWARMUI).encode("utf-16-le")
    Image.new("RGB", (64, 48)).save(tmp_path / "x.jpg", exif=exif)
    assert read_record(tmp_path / "x.jpg").request.seed == 1713


# Fooocus 2.5.5, modules/meta_parser.py FooocusMetadataParser.to_string
FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 2,
    "full_negative_prompt": ["anime", "red"],
    "full_prompt": ["cinematic still a bear", "a bear, sharp"],
    "guidance_scale": 4.0,
    "lora_combined_1": "ink : 0.1",
    "loras": [["ink", 0.1, "4852686128"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "red",
    "performance": "Speed",
    "prompt": "a bear",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "588390471",
    "sharpness": 2.0,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_fooocus(suffix: str, read_png: Read, tmp_path: Path) -> None:
    """Its EXIF has UserComment and MakerNote in the main directory (get_exif)."""
    if suffix == "png":
        record = read_png({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"})
    else:
        exif = Image.Exif()
        exif[0x9286], exif[0x0131], exif[0x927C] = json.dumps(FOOOCUS), "Fooocus v2.5.5", "fooocus"
        Image.new("RGB", (64, 48)).save(tmp_path / f"x.{suffix}", exif=exif)
        record = read_record(tmp_path / f"x.{suffix}")
    assert record.request == TextToImage(
        prompt="cinematic still a bear, a bear, sharp <lora:ink:0.1>",
        negative="anime, red",
        seed=588390471,
        steps=30,
        guidance=4,
        width=1152,
        height=896,
        sampler="dpmpp_2m_sde",
        schedule="karras",
        clip_skip=1,
        zero_negative=False,
    )
    assert record.model == "juggernautXL_v8Rundiffusion"
    assert [note.partition(":")[0] for note in record.notes] == ["noise", "adm_guidance", "sharpness", "vae"]


# Easy Diffusion 19c805e (save_utils.py, get_printable_request) with sdkit 2.1.1 (file_utils.py: str(val) in a PNG)
EASY = {
    "prompt": "a bear",
    "negative_prompt": "",
    "seed": 42,
    "use_stable_diffusion_model": "/models/sd-v1-5.safetensors",
    "clip_skip": True,
    "use_vae_model": None,
    "sampler_name": "dpmpp_2m",
    "width": 512,
    "height": 768,
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "distilled_guidance_scale": 3.5,
    "use_lora_model": ["ink", "light"],
    "lora_alpha": [0.5, 1.0],
    "use_embeddings_model": None,
    "tiling": "x",
    "use_face_correction": None,
    "use_upscale": None,
}


@pytest.mark.parametrize("as_text", [True, False])
def test_easy_diffusion(as_text: bool, read_png: Read, tmp_path: Path) -> None:
    if as_text:
        record = read_png({name: str(value) for name, value in EASY.items()})
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(EASY).encode("utf-16-be")
        Image.new("RGB", (64, 48)).save(tmp_path / "x.jpg", exif=exif)
        record = read_record(tmp_path / "x.jpg")
    assert record == Record(
        TextToImage(
            prompt="a bear <lora:ink:0.5> <lora:light:1>",
            seed=42,
            width=512,
            height=768,
            steps=25,
            guidance=7.5,
            sampler="dpmpp_2m",
            schedule="karras",
            clip_skip=2,
            tile="x",
            rng="gpu",
        ),
        "/models/sd-v1-5.safetensors",
    )


def hide(text: str, *, signature: bytes, packed: bool, mode: str = "RGBA") -> Image.Image:
    """Hide a text as sd-webui-stealth-pnginfo does: bit by bit down the columns, in alpha or in red, green, blue."""
    data = gzip.compress(text.encode()) if packed else text.encode()
    bits = np.unpackbits(np.frombuffer(signature + (len(data) * 8).to_bytes(4) + data, np.uint8))
    pixels = np.full((96, 128, 4 if mode == "RGBA" else 3), 254, np.uint8)
    columns = pixels.transpose(1, 0, 2)
    places = columns[..., 3:].reshape(-1) if mode == "RGBA" else columns.reshape(-1)
    places[: len(bits)] |= bits
    if mode == "RGBA":
        columns[..., 3] = places.reshape(columns.shape[:2])
    else:
        columns[...] = places.reshape(columns.shape)
    return Image.fromarray(pixels, mode)


# NovelAI's Comment, as its web client writes it
NOVELAI = {
    "prompt": "{a bear}, [forest]",
    "steps": 28,
    "height": 768,
    "width": 512,
    "scale": 5.0,
    "uncond_scale": 1.0,
    "cfg_rescale": 0.2,
    "seed": 3417044607,
    "n_samples": 1,
    "noise_schedule": "karras",
    "sampler": "k_dpmpp_2m",
    "uc": "red",
    "request_type": "PromptGenerateRequest",
    "sm": True,
}


def test_novelai_in_alpha(tmp_path: Path) -> None:
    """NovelAI/novelai-image-metadata, nai_meta.py: LSBExtractor."""
    text = json.dumps({"Description": "a bear", "Software": "NovelAI", "Comment": json.dumps(NOVELAI)})
    hide(text, signature=b"stealth_pngcomp", packed=True).save(tmp_path / "x.png")
    record = read_record(tmp_path / "x.png")
    names = ("prompt", "negative", "steps", "seed", "sampler", "schedule", "width", "height", "guidance_rescale")
    expected = ("{a bear}, [forest]", "red", 28, 3417044607, "dpmpp_2m", "karras", 512, 768, 0.2)
    assert fields(record, *names) == expected
    assert [note.partition(":")[0] for note in record.notes] == ["noise", "weights in the prompt", "uncond_scale", "sm"]


@pytest.mark.parametrize(
    ("signature", "packed", "mode"),
    [
        (b"stealth_pnginfo", False, "RGBA"),
        (b"stealth_pngcomp", True, "RGBA"),
        (b"stealth_rgbinfo", False, "RGB"),
        (b"stealth_rgbcomp", True, "RGB"),
    ],
)
def test_stealth_text_of_a1111(signature: bytes, packed: bool, mode: str, tmp_path: Path) -> None:
    """sd-webui-stealth-pnginfo, scripts/stealth_pnginfo.py."""
    hide(A1111, signature=signature, packed=packed, mode=mode).save(tmp_path / "x.png")
    assert read_record(tmp_path / "x.png").request.seed == 965400086


def test_a_hidden_text_that_is_cut_is_no_text(tmp_path: Path) -> None:
    picture = hide(A1111, signature=b"stealth_pngcomp", packed=True).crop((0, 0, 8, 96))
    picture.save(tmp_path / "x.png")
    with pytest.raises(ReverieError, match="does not say how it was made"):
        read_record(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("sampler", "mode", "ours"),
    [
        ("DPM++ 2M Karras", "Torch CPU Compatible", ("dpmpp_2m", "karras", "cpu")),
        ("UniPC Trailing", "NVIDIA GPU Compatible", ("unipc", "trailing", "gpu")),
    ],
)
def test_draw_things(sampler: str, mode: str, ours: tuple[str, ...], tmp_path: Path) -> None:
    """XMP as Draw Things 1.2025 writes it."""
    configuration = {"c": "a bear & a ball", "uc": "red", "model": "sd_v1.5.ckpt", "sampler": sampler, "scale": 4.5}
    configuration |= {"seed": 2441935286, "size": "512x768", "steps": 8, "strength": 1, "seed_mode": mode}
    loras = [{"file": "ink_lora.ckpt", "weight": 0.8, "mode": "all"}]
    text = json.dumps(configuration | {"v2": {"loras": loras, "clipSkip": 2}}).replace("&", "&amp;")
    xmp = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0.0">
       <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
       xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/">
       <xmp:CreatorTool>Draw Things</xmp:CreatorTool>
       <exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></exif:UserComment>
       </rdf:Description></rdf:RDF></x:xmpmeta>"""
    Image.new("RGB", (64, 48)).save(tmp_path / "x.webp", xmp=xmp.encode())
    record = read_record(tmp_path / "x.webp")
    assert fields(record, "prompt", "negative", "seed", "steps", "width", "height", "clip_skip") == (
        "a bear & a ball <lora:ink_lora:0.8>",
        "red",
        2441935286,
        8,
        512,
        768,
        2,
    )
    assert (fields(record, "sampler", "schedule", "rng"), record.notes) == (ours, ())


@pytest.mark.parametrize("name", ["parameters", "prompt"])
def test_json_of_nobody_is_refused(name: str, read_png: Read) -> None:
    for data in ({"text": "a bear", "mood": "dark"}, {"prompt": "a bear"}, {}):
        with pytest.raises(ReverieError, match="of no program that is known"):
            read_png({name: json.dumps(data)})


def test_a_comment_of_a_painting_program_is_no_prompt(read_png: Read) -> None:
    with pytest.raises(ReverieError, match="does not say how it was made"):
        read_png({"Comment": "Created with GIMP", "Software": "GIMP"})


def test_damage_is_one_line(read_png: Read) -> None:
    for chunks in ({"invokeai_metadata": "{"}, {"prompt": "{1"}, {"sd-metadata": "[]"}, {"Dream": '"a -s'}):
        with pytest.raises(ReverieError, match="damaged"):
            read_png(chunks)


def test_swarmui_varies(read_png: Read) -> None:
    varied = SWARMUI["sui_image_params"] | {"variationseed": 3, "variationseedstrength": 0.2}
    record = read_png({"parameters": json.dumps({"sui_image_params": varied})})
    assert fields(record, "variation") == (Variation(seed=3, strength=0.2),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
SAMPLER = {"seed": 5, "steps": 25, "cfg": 6.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}
LINKS = {"model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "ink", "strength_model": 1, "strength_clip": 0.5, "model": ["1", 0], "clip": ["1", 1]},
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bear", "clip": ["2", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "5": {"class_type": "KSampler", "inputs": SAMPLER | LINKS},
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0]}},
}
INVOKE = ("positive_prompt", "prompt", "steps", "seed", "width", "scheduler", "sampler", "loras", "clip_skip", "model")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_there_gives_a_request_or_one_line(data: st.DataObject) -> None:
    """Put anything in the place of any setting."""
    nodes = deepcopy(GRAPH)
    inputs: Any = nodes[data.draw(st.sampled_from(sorted(nodes)))]["inputs"]
    inputs[data.draw(st.sampled_from(sorted(inputs)))] = data.draw(JSON)
    cut = data.draw(st.integers(0, len(A1111)))
    invoke = dict.fromkeys(data.draw(st.sets(st.sampled_from(INVOKE))), data.draw(JSON))
    swarm: dict[str, Any] = SWARMUI["sui_image_params"]
    swarm = swarm | {data.draw(st.sampled_from(sorted(swarm))): data.draw(JSON)}
    easy = EASY | {data.draw(st.sampled_from(sorted(EASY))): data.draw(JSON)}
    fooocus = FOOOCUS | {data.draw(st.sampled_from(sorted(FOOOCUS))): data.draw(JSON)}
    for chunk in (
        {"prompt": json.dumps(nodes)},
        {"parameters": A1111[:cut] + data.draw(st.text(max_size=9)) + A1111[cut:]},
        {"parameters": json.dumps({"sui_image_params": swarm})},
        {"parameters": json.dumps(fooocus)},
        {"parameters": json.dumps(easy)},
        {"invokeai_metadata": json.dumps(invoke)},
        {"sd-metadata": json.dumps({"image": invoke})},
        {"Dream": data.draw(st.text(max_size=40))},
    ):
        picture = Image.new("RGB", (64, 48))
        picture.info.update(chunk)
        with suppress(ReverieError):  # and nothing else
            assert isinstance(read_record(picture).request, TextToImage)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ({"workflow": '{"nodes": [{"id": 1, "type": "KSampler"}], "links": []}'}, "workflow of ComfyUI's editor"),
        ({"generation_data": '{"models": [], "baseModel": {}}\0'}, "'generation_data' what no program that is known"),
        ({"Description": "a cat --ar 16:9 --v 6.0 Job ID: 1"}, "does not say how it was made"),
    ],
)
def test_texts_that_are_no_settings_are_named(
    chunks: dict[str, str], told: str, read_png: Callable[[dict[str, str]], Record]
) -> None:
    with pytest.raises(ReverieError, match=told):
        read_png(chunks)
