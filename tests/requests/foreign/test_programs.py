"""Are the settings understood that other programs leave in a picture, and is what they lose named?"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reverie.errors import ReverieError
from reverie.generate.metadata import texts
from reverie.requests.records import Record, read_record
from reverie.requests.samplers import SAMPLERS
from reverie.generate.parts import Hires, Variation
from reverie.generate.requests import TextToImage

A1111 = """a (red:1.2) bear,
on a blue ball
Negative prompt: blurry,
ugly
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.55, Clip skip: 2, ENSD: 31337, RNG: CPU, Hires upscale: 1.5, \
Hires steps: 12, Hires upscaler: Latent, Lora hashes: "bear: 0123, ball: 4567", Version: v1.6.0"""


def from_png(tmp_path: Path, **chunks: str) -> Record:
    """Write text chunks into a picture of 64 x 48 pixels as the program does, and read them."""
    info = PngInfo()
    for name, text in chunks.items():
        info.add_text(name.replace("_metadata_old", "-metadata"), text)
    Image.new("RGB", (64, 48)).save(tmp_path / "x.png", pnginfo=info)
    return read_record(tmp_path / "x.png")


def test_a1111(tmp_path: Path) -> None:
    request, model, missed = from_png(tmp_path, parameters=A1111)
    assert request == TextToImage(
        prompt="a (red:1.2) bear,\non a blue ball",
        negative="blurry,\nugly",
        steps=28,
        sampler="dpmpp_2m",
        schedule="karras",
        guidance=7.5,
        seed=965400086,
        width=512,
        height=768,
        clip_skip=2,
        hires=Hires(scale=1.5, steps=12, strength=0.55, upscaler="latent"),
    )
    assert model == "v1-5-pruned-emaonly"
    assert missed == ("ENSD: 31337",)


@pytest.mark.parametrize(
    ("label", "extra", "sampler", "schedule"),
    [
        ("Euler a", "", "euler_ancestral", "normal"),
        ("DPM++ 2M", "", "dpmpp_2m", "normal"),
        ("DPM++ 2M", "Schedule type: Automatic, ", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE", "Schedule type: Automatic, ", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 2M SDE Exponential", "", "dpmpp_2m_sde", "exponential"),
        ("DPM2 a Karras", "", "dpm2_ancestral", "karras"),
        ("Euler", "Schedule type: SGM Uniform, ", "euler", "sgm_uniform"),
        ("DDIM", "", "ddim", "ddim"),
        ("PLMS", "", "plms", "ddim"),
        ("LCM", "Schedule type: Automatic, ", "lcm", "lcm"),
    ],
)
def test_a1111_samplers(label: str, extra: str, sampler: str, schedule: str, tmp_path: Path) -> None:
    text = f"a\nSteps: 20, Sampler: {label}, {extra}CFG scale: 7, Seed: 1, Size: 64x64"
    request = from_png(tmp_path, parameters=text).request
    assert (request.sampler, request.schedule) == (sampler, schedule)


def test_a1111_says_what_is_missed(tmp_path: Path) -> None:
    text = (
        "\nSteps: 20, Sampler: Restart, Schedule type: Beta, CFG scale: 7, Seed: 4294967296, Size: 515x512, "
        'Denoising strength: 0.7, Variation seed: 3, Variation seed strength: 0.2, "Template": x, '
        'ControlNet 0: "Module: canny, Weight: 1.0, \\"Mode\\": x", Version: v1.9.0'
    )
    request, _, missed = from_png(tmp_path, parameters=text)
    assert (request.prompt, request.seed, request.width) == ("", 0, 512)
    assert request.variation == Variation(seed=3, strength=0.2)
    assert [line.partition(":")[0] for line in missed] == [
        "width",
        "sampler",
        "schedule",
        "Denoising strength",
        "RNG",
        "ControlNet 0",
    ]
    assert missed[-1] == 'ControlNet 0: Module: canny, Weight: 1.0, "Mode": x'


def test_what_we_write_for_a1111_reads_back(tmp_path: Path) -> None:
    for sampler in SAMPLERS:
        request = TextToImage(
            prompt="一只熊,\nNegative: x",
            negative='say "no", twice: no',
            sampler=sampler,
            seed=5,
            guidance=6.5,
            width=64,
            height=32,
        )
        read = from_png(tmp_path, parameters=texts(request, "a, b: c")["parameters"])
        assert (read.request, read.model) == (request, "a, b: c")


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_a1111_in_exif(suffix: str, encoding: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(encoding)
    Image.new("RGB", (64, 48)).save(tmp_path / f"x.{suffix}", exif=exif)
    assert read_record(tmp_path / f"x.{suffix}").request.seed == 965400086


def comfy_graph() -> dict[str, Any]:
    """Give ComfyUI's graph for a checkpoint, a LoRA and one sampler."""
    return {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5.safetensors"}},
        "10": {
            "class_type": "LoraLoader",
            "inputs": {
                "lora_name": "styles\\ink.safetensors",
                "strength_model": 0.8,
                "strength_clip": 0.5,
                "model": ["4", 0],
                "clip": ["4", 1],
            },
        },
        "11": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bear", "clip": ["11", 0]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "red", "clip": ["11", 0]}},
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 2**33 + 5,
                "steps": 25,
                "cfg": 6.5,
                "sampler_name": "dpmpp_2m_sde_gpu",
                "scheduler": "karras",
                "denoise": 1,
                "model": ["10", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    }


INVOKE = ("positive_prompt", "prompt", "steps", "seed", "width", "scheduler", "sampler", "loras", "clip_skip", "model")
COMFY = TextToImage(
    prompt="a bear <lora:ink:0.5:0.8>",
    negative="red",
    seed=5,
    steps=25,
    guidance=6.5,
    sampler="dpmpp_2m_sde",
    schedule="karras",
    width=640,
    height=512,
    clip_skip=2,
)


def test_comfyui(tmp_path: Path) -> None:
    read = from_png(tmp_path, prompt=json.dumps(comfy_graph()), workflow="{}")
    assert read == (COMFY, "sd/v1-5.safetensors", ())


def test_comfyui_in_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(comfy_graph())
    Image.new("RGB", (64, 48)).save(tmp_path / "x.webp", exif=exif)
    assert read_record(tmp_path / "x.webp").request == COMFY


def test_comfyui_says_what_is_missed(tmp_path: Path) -> None:
    graph = comfy_graph()
    graph["6"]["inputs"]["text"] = ["20", 0]
    graph["20"] = {"class_type": "PrimitiveString", "inputs": {"value": "a (bear:1.2)"}}
    graph["12"] = {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1280}}
    graph["13"] = {"class_type": "KSampler", "inputs": {**graph["3"]["inputs"], "steps": 9, "denoise": 0.5}}
    graph["13"]["inputs"]["latent_image"] = ["12", 0]
    graph["8"]["inputs"]["samples"] = ["13", 0]
    graph["5"]["inputs"]["batch_size"] = 4
    request, _, missed = from_png(tmp_path, prompt=json.dumps(graph))
    assert request == COMFY.replace(prompt="a (bear:1.2) <lora:ink:0.5:0.8>")
    assert [line.partition(":")[0].partition(" of")[0] for line in missed] == [
        "weights in the prompt",
        "batch_size",
        "a further KSampler",
        "node LatentUpscale",
    ]
    del graph["3"], graph["13"]
    with pytest.raises(ReverieError, match="holds no KSampler"):
        from_png(tmp_path, prompt=json.dumps(graph))


def test_comfyui_loops_end(tmp_path: Path) -> None:
    graph = comfy_graph()
    graph["4"]["inputs"]["loop"] = ["9", 0]
    assert from_png(tmp_path, prompt=json.dumps(graph)).request == COMFY


def test_invokeai(tmp_path: Path) -> None:
    data = {
        "app_version": "4.2.0",
        "generation_mode": "txt2img",
        "positive_prompt": "a bear",
        "negative_prompt": "red",
        "width": 512,
        "height": 640,
        "seed": 7,
        "rand_device": "cpu",
        "cfg_scale": 6,
        "cfg_rescale_multiplier": 0.5,
        "steps": 30,
        "scheduler": "dpmpp_2m_k",
        "clip_skip": 1,
        "seamless_x": True,
        "model": {"key": "1", "name": "dreamshaper", "base": "sd-1", "type": "main"},
        "loras": [{"model": {"name": "ink"}, "weight": 0.75}],
        "controlnets": [],
        "hrf_enabled": True,
    }
    assert from_png(tmp_path, invokeai_metadata=json.dumps(data)) == (
        TextToImage(
            prompt="a bear <lora:ink:0.75>",
            negative="red",
            width=512,
            height=640,
            seed=7,
            guidance=6,
            guidance_rescale=0.5,
            steps=30,
            sampler="dpmpp_2m",
            schedule="karras",
            clip_skip=2,
            tile="x",
        ),
        "dreamshaper",
        ("hrf_enabled: True",),
    )


def test_invokeai_of_version_2(tmp_path: Path) -> None:
    image = {"prompt": [{"prompt": "a bear [red]", "weight": 1}], "steps": 50, "cfg_scale": 7.5, "seed": 3}
    image |= {"width": 512, "height": 512, "sampler": "k_euler_a", "type": "txt2img", "perlin": 0.1}
    chunk = json.dumps({"model": "stable diffusion", "model_weights": "sd-1.4", "image": image})
    expected = TextToImage(
        prompt="a bear",
        negative="red",
        steps=50,
        guidance=7.5,
        seed=3,
        width=512,
        height=512,
        sampler="euler_ancestral",
        schedule="normal",
    )
    assert from_png(tmp_path, sd_metadata_old=chunk) == (expected, "sd-1.4", ("perlin: 0.1",))
    dream = '"a bear [red]" -s 50 -S 3 -W 512 -H 512 -C 7.5 -A k_euler_a -v 0.1'
    assert from_png(tmp_path, Dream=dream) == (expected, "", ("-v 0.1",))
    assert from_png(tmp_path, Dream=dream.replace("-s 50 -S 3", "-s50 -S3")).request == expected


def test_diffusers_arguments(tmp_path: Path) -> None:
    given = {"prompt": "a bear", "negative_prompt": "red", "num_inference_steps": 25, "guidance_scale": 7.5, "seed": 3}
    given |= {"scheduler": "EulerAncestralDiscreteScheduler", "model_id": "a/b", "eta": 0.5, "clip_skip": 1}
    expected = TextToImage(
        prompt="a bear",
        negative="red",
        steps=25,
        guidance=7.5,
        seed=3,
        width=64,
        height=48,
        sampler="euler_ancestral",
        schedule="leading",
        clip_skip=2,
    )
    for chunks in ({name: str(value) for name, value in given.items()}, {"Comment": json.dumps(given)}):
        assert from_png(tmp_path, **chunks) == (expected, "a/b", ("eta: 0.5",))
    given["scheduler"] = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    request = from_png(tmp_path, parameters=json.dumps(given)).request
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "karras")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_stands_there_gives_a_request_or_one_line(data: st.DataObject) -> None:
    """Put anything in the place of any setting."""
    graph = comfy_graph()
    inputs = graph[data.draw(st.sampled_from(sorted(graph)))]["inputs"]
    inputs[data.draw(st.sampled_from(sorted(inputs)))] = data.draw(JSON)
    cut = data.draw(st.integers(0, len(A1111)))
    invoke = dict.fromkeys(data.draw(st.sets(st.sampled_from(INVOKE))), data.draw(JSON))
    for chunk in (
        {"prompt": json.dumps(graph)},
        {"parameters": A1111[:cut] + data.draw(st.text(max_size=9)) + A1111[cut:]},
        {"invokeai_metadata": json.dumps(invoke)},
        {"sd-metadata": json.dumps({"image": invoke})},
        {"Dream": data.draw(st.text(max_size=40))},
    ):
        picture = Image.new("RGB", (64, 48))
        picture.info.update(chunk)
        with suppress(ReverieError):  # and nothing else
            assert isinstance(read_record(picture).request, TextToImage)


def test_our_own_parameters_miss_nothing(tmp_path: Path) -> None:
    """As after another program has kept A1111's text and dropped ours."""
    size = {"width": 64, "height": 48, "hires": Hires(steps=5)}
    request = TextToImage(prompt="a bear", seed=7, guidance=3, clip_skip=2, tile="x", **size)
    reading = from_png(tmp_path, parameters=texts(request, "mine")["parameters"])
    assert reading.not_honoured == ()
    assert reading.model == "mine"
    assert reading.request == request.replace(hires=Hires(steps=5, width=128, height=96))


def test_what_leads_in_circles_is_one_line(tmp_path: Path) -> None:
    graph = comfy_graph()
    for node in graph.values():
        if node["class_type"] == "CLIPTextEncode":
            node["inputs"]["text"] = ["round", 0]
    graph["round"] = {"class_type": "PrimitiveString", "inputs": {"value": ["round", 0]}}
    with pytest.raises(ReverieError, match="settings are damaged"):
        from_png(tmp_path, prompt=json.dumps(graph))
    with pytest.raises(ReverieError, match="settings are damaged"):
        from_png(tmp_path, invokeai_metadata='{"clip_skip": Infinity}')


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match="does not say how it was made"):
        from_png(tmp_path, Software="GIMP")
    for chunks in ({"invokeai_metadata": "{"}, {"prompt": "{1"}, {"sd_metadata_old": "[]"}, {"Dream": '"a -s'}):
        with pytest.raises(ReverieError, match="damaged"):
            from_png(tmp_path, **chunks)
    with pytest.raises(ReverieError, match="steps 5000 is not possible"):
        from_png(tmp_path, parameters="a\nSteps: 5000, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64")
