"""InvokeAI's three generations of metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from reverie.errors import ReverieError
from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record

Read = Callable[[dict[str, Any]], Record]

# InvokeAI 4.2; version 6 writes the same names and more
DATA = {
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
REQUEST = TextToImage(
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
)


@pytest.fixture
def read(read_png: Callable[[dict[str, str]], Record]) -> Read:
    return lambda data: read_png({"invokeai_metadata": json.dumps(data)})


def test_version_4(read: Read) -> None:
    assert read(DATA) == Record(REQUEST, "dreamshaper", ("hrf_enabled: true",))


def test_version_6_says_what_stands_beside_the_prompt(read: Read) -> None:
    """InvokeAI 6.14.0-alpha: util/graph/generation/addIPAdapters.ts, canvas metadata, buildSD1Graph.ts."""
    layer, off = {"id": "1", "isEnabled": True}, {"id": "2", "isEnabled": False}
    canvas = {"controlLayers": [layer, off], "regionalGuidance": [layer], "inpaintMasks": [], "rasterLayers": [off]}
    reference = {"isEnabled": True, "config": {"type": "ip_adapter", "model": {"name": "ip_adapter_sd15"}}}
    sizes = {"hidiffusion": False, "hidiffusion_raunet": True, "hidiffusion_t1_ratio": 0.25}
    data = DATA | {"hrf_enabled": False, "ref_images": [reference, off], "canvas_v2_metadata": canvas, **sizes}
    assert read(data) == Record(
        REQUEST,
        "dreamshaper",
        (
            "ref_images: a reference picture by ip_adapter_sd15",
            "canvas_v2_metadata: 1 of controlLayers",
            "canvas_v2_metadata: 1 of regionalGuidance",
        ),
    )
    assert read(data | {"hidiffusion": True}).notes[-1].startswith("hidiffusion: ")


def test_pictures_from_pictures_are_said_without_strength(read: Read) -> None:
    notes = read(DATA | {"generation_mode": "img2img", "hrf_enabled": False}).notes
    assert notes == ("generation_mode: img2img; the picture that it started from is not in the file",)


@pytest.mark.parametrize(
    ("scheduler", "sampler", "schedule", "noted"),
    [
        ("dpmpp_2s", "dpmpp_2m", "leading", True),
        ("dpmpp_2s_k", "dpmpp_2m", "karras", True),
        ("dpmpp_3m", "dpmpp_2m", "leading", True),
        ("kdpm_2_k", "dpm2", "karras", False),
        ("ddim", "ddim", "ddim", False),
        ("lcm", "lcm", "lcm", True),
        ("euler_a", "euler_ancestral", "leading", True),
        ("unipc_k", "unipc", "karras", False),
        ("pndm", "plms", "leading", False),
    ],
)
def test_schedulers(scheduler: str, sampler: str, schedule: str, noted: bool, read: Read) -> None:
    """backend/stable_diffusion/schedulers/schedulers.py: dpmpp_2s is DPMSolverSinglestepScheduler, not ancestral."""
    record = read(DATA | {"scheduler": scheduler, "hrf_enabled": False})
    assert (record.request.sampler, record.request.schedule) == (sampler, schedule)
    assert bool(record.notes) == noted


def test_noise_of_a_gpu_is_drawn(read: Read) -> None:
    assert read(DATA | {"rand_device": "cuda"}).request == REQUEST.replace(rng="gpu")


def test_without_a_prompt_nothing_is_drawn(read: Read) -> None:
    with pytest.raises(ReverieError, match="holds no prompt"):
        read({"app_version": "6.14.0", "seed": 3})
    with pytest.raises(ReverieError, match="is no text but"):
        read(DATA | {"positive_prompt": {"a": 1}})


def test_version_2_and_1(read_png: Callable[[dict[str, str]], Record]) -> None:
    image = {"prompt": [{"prompt": "a bear [red]", "weight": 1}], "steps": 50, "cfg_scale": 7.5, "seed": 3}
    image |= {"width": 512, "height": 512, "sampler": "k_euler", "type": "txt2img", "perlin": 0.1}
    chunk = json.dumps({"model": "stable diffusion", "model_weights": "sd-1.4", "image": image})
    expected = TextToImage(
        prompt="a bear",
        negative="red",
        steps=50,
        guidance=7.5,
        seed=3,
        width=512,
        height=512,
        sampler="euler",
        schedule="normal",
        rng="gpu",
    )
    assert read_png({"sd-metadata": chunk}) == Record(expected, "sd-1.4", ("perlin: 0.1",))
    dream = '"a bear [red]" -s 50 -S 3 -W 512 -H 512 -C 7.5 -A k_euler -v 0.1'
    assert read_png({"Dream": dream}) == Record(expected, "", ("-v: 0.1",))
    assert read_png({"Dream": dream.replace("-s 50 -S 3", "-s50 -S3")}).request == expected
