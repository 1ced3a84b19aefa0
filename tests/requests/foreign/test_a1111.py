"""The `parameters` text of AUTOMATIC1111 and of the programs that write it too."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.media.pictures import decode, encode
from reverie.requests.foreign.a1111_api import Redrawing, WebOptions, draft_of
from reverie.requests.foreign.draft import way_at
from reverie.requests.parts import Hires, Refiner, Variation
from reverie.requests.pictures import TextToImage
from reverie.requests.records import Record, read_record, texts
from reverie.requests.references import content_of
from reverie.requests.samplers import SAMPLERS

Read = Callable[[dict[str, str]], Record]

# stable-diffusion-webui 1.6
A1111 = """a (red:1.2) bear,
on a blue ball
Negative prompt: blurry,
ugly
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.55, Clip skip: 2, ENSD: 31337, RNG: CPU, Hires upscale: 1.5, \
Hires steps: 12, Hires upscaler: Latent, Lora hashes: "bear: 0123, ball: 4567", Version: v1.6.0"""


@pytest.fixture
def read(read_png: Read) -> Callable[[str], Record]:
    return lambda text: read_png({"parameters": text})


Text = Callable[[str], Record]


def test_prompts_of_several_lines_and_a_line_of_settings(read: Text) -> None:
    assert read(A1111) == Record(
        TextToImage(
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
        ),
        "v1-5-pruned-emaonly",
        ("ENSD: 31337",),
    )


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
        ("Euler", "Schedule type: Simple, ", "euler", "simple"),
        ("Euler", "Schedule type: DDIM, ", "euler", "ddim_uniform"),
        ("DDIM", "Schedule type: Automatic, ", "ddim", "a1111_ddim"),
        ("PLMS", "", "plms", "a1111_ddim"),
        ("UniPC", "Schedule type: Karras, ", "unipc_bh1", "a1111_unipc"),
        ("LCM", "Schedule type: Automatic, ", "lcm", "a1111_lcm"),
        ("LCM", "", "lcm", "a1111_lcm"),
    ],
)
def test_samplers_and_schedules(label: str, extra: str, sampler: str, schedule: str, read: Text) -> None:
    """modules/sd_samplers_kdiffusion.py and sd_schedulers.py of version 1.10."""
    request = read(f"a\nSteps: 20, Sampler: {label}, {extra}CFG scale: 7, Seed: 1, Size: 64x64").request
    assert isinstance(request, TextToImage)
    assert (request.sampler, request.schedule) == (sampler, schedule)


@pytest.mark.parametrize(
    ("label", "discards"), [("DPM2", True), ("DPM2 a", True), ("DPM++ 3M SDE", True), ("LMS", False)]
)
def test_some_samplers_leave_out_the_level_before_the_last(label: str, discards: bool, read: Text) -> None:
    """modules/sd_samplers_kdiffusion.py: discard_next_to_last_sigma."""
    request = read(f"a\nSteps: 20, Sampler: {label}, CFG scale: 7, Seed: 1, Size: 64x64, Version: v1.10.1").request
    assert request.discard_penultimate == discards


@pytest.mark.parametrize(("rng", "ours"), [("", "gpu"), (", RNG: NV", "gpu"), (", RNG: CPU", "cpu")])
def test_noise_is_drawn_where_it_was(rng: str, ours: str, read: Text) -> None:
    """Version 1.10 leaves out RNG where it is GPU (infotext_utils.py, parse_generation_parameters)."""
    record = read(f"a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64{rng}")
    assert (record.request.rng, record.notes) == (ours, ())


def test_what_cannot_be_honoured_is_noted(read: Text) -> None:
    record = read(
        "\nSteps: 20, Sampler: Restart, Schedule type: Beta, CFG scale: 7, Seed: 4294967296, Size: 515x512, "
        'Denoising strength: 0.7, Variation seed: 3, Variation seed strength: 0.2, "Template": x, RNG: other, '
        'ControlNet 0: "Module: canny, Weight: 1.0, \\"Mode\\": x", Version: v1.9.0'
    )
    request, notes = record.request, record.notes
    assert isinstance(request, TextToImage)
    assert (request.prompt, request.seed, request.width) == ("", 0, 512)
    assert request.variation == Variation(seed=3, strength=0.2)
    assert [line.partition(":")[0] for line in notes] == [
        "width",
        "sampler",
        "schedule",
        "noise",
        "Denoising strength",
        "ControlNet 0",
    ]
    assert notes[-1] == 'ControlNet 0: Module: canny, Weight: 1.0, "Mode": x'


def test_one_field_does_not_spoil_the_rest(read: Text) -> None:
    record = read(
        "a\nSteps: 5000, Sampler: Euler, CFG scale: high, Seed: 7, Size: 64x64, Hires upscale: x, Clip skip: 99, "
        "RNG: CPU"
    )
    assert record.request == TextToImage(prompt="a", seed=7, width=64, height=64, sampler="euler", schedule="normal")
    for field in ("steps", "guidance", "hires", "clip_skip"):
        assert any(field in note for note in record.notes), field


def test_a_seed_that_is_no_number_stops(read: Text) -> None:
    with pytest.raises(ReverieError, match="the seed of the file is no number but many; it cannot be replayed"):
        read("a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: many, Size: 64x64")
    record = read("a\nSteps: 20, Sampler: Euler, CFG scale: 7, Size: 64x64")
    assert "seed: the file holds none, so another picture of the prompt is drawn" in record.notes


def test_a_prompt_may_begin_with_a_brace(read: Text) -> None:
    """As dynamic prompts do."""
    record = read("{red|blue} bear\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64")
    assert record.request.prompt == "{red|blue} bear"


@pytest.mark.parametrize(
    ("resize", "width", "height", "noted"),
    [("1024x0", 1024, 1536, 0), ("0x1536", 1024, 1536, 0), ("1024x1024", 1024, 1024, 1)],
)
def test_the_free_side_of_a_second_pass(resize: str, width: int, height: int, noted: int, read: Text) -> None:
    """processing.py, calculate_target_resolution."""
    record = read(
        f"a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x768, RNG: CPU, Denoising strength: 0.5, "
        f"Hires resize: {resize}, Hires upscaler: Latent"
    )
    assert record.request.hires == Hires(width=width, height=height, strength=0.5)
    assert len(record.notes) == noted


@pytest.mark.parametrize(
    ("name", "file"), [("R-ESRGAN 4x+", "RealESRGAN_x4plus.pth"), ("4x-UltraSharp", "4x-UltraSharp.safetensors")]
)
def test_an_upscaler_is_taken_where_its_file_is_here(
    name: str, file: str, read: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU, Denoising strength: 0.5, "
        f"Hires upscale: 2, Hires upscaler: {name}"
    )
    monkeypatch.setenv("REVERIE_MODEL_DIR", str(tmp_path / "models"))
    record = read(text)
    assert record.request.hires == Hires(upscaler="lanczos", strength=0.5)
    assert record.notes[0].startswith(f"Hires upscaler: {name}; lanczos takes its place")
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / file
    path.touch()
    record = read(text)
    assert (record.request.hires, record.notes) == (Hires(upscaler=str(path), strength=0.5), ())


def test_clip_skip_is_left_out_of_account_for_sdxl(read: Text) -> None:
    """modules/sd_hijack_clip.py, FrozenCLIPEmbedderForSDXLWithCustomWords: a hidden layer is read as it is."""
    text = "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: {}, Clip skip: 2, RNG: CPU"
    assert read(text.format("512x768")).request.clip_skip == 2
    large = read(text.format("832x1216"))
    assert large.request.clip_skip == 1
    assert large.notes[0].startswith("Clip skip: 2; left out")


def test_sdnext(read: Text) -> None:
    """SD.Next 058a7f0, modules/processing_info.py and sd_samplers_diffusers.py."""
    record = read(
        "a bear\nNegative prompt: red\nTemplate: a __animal__\nNegative template: __colour__\n"
        "Steps: 20, Size: 512x512, Sampler: DPM++ 2M, Scheduler: DPMSolverMultistepScheduler, Seed: 5, CFG scale: 6, "
        "CFG rescale: 0.7, CLiP-skip: 2, App: SD.Next, Version: 058a7f0, Pipeline: StableDiffusionPipeline, "
        "Operations: txt2img; hires, Model: dreamshaper, Variation seed: 3, Variation strength: 0.25, Refine: True, "
        "HiRes mode: 1, Hires upscaler: Latent, Hires scale: 2, Hires size: 1024x1024, Hires force: True, "
        "Hires steps: 9, Hires strength: 0.4, Sampler sigma: karras, CFG end: 0.8"
    )
    assert record.request == TextToImage(
        prompt="a bear",
        negative="red",
        steps=20,
        seed=5,
        width=512,
        height=512,
        guidance=6,
        guidance_rescale=0.7,
        clip_skip=2,
        sampler="dpmpp_2m",
        schedule="karras",
        variation=Variation(seed=3, strength=0.25),
        hires=Hires(scale=2, steps=9, strength=0.4, upscaler="latent"),
        rng="gpu",
    )
    assert (record.model, record.notes) == ("dreamshaper", ("CFG end: 0.8",))


def test_stable_diffusion_cpp(read: Text, tmp_path: Path) -> None:
    """stable-diffusion.cpp 97d2990, examples/common/common.cpp get_image_params; media_io.cpp for WebP."""
    details = {"schema": "sdcpp.image.params/v1", "mode": "img_gen", "models": {"control_net": "canny.gguf"}}
    text = (
        "a bear\nNegative prompt: red\nSteps: 20, CFG scale: 7.000000, SLG scale: 2.5, Skip layers: [7, 8, 9, ], "
        "Guidance: 3.500000, Eta: inf, Seed: 42, Size: 512x512, Model: sd-v1-4.ckpt, RNG: cpu, "
        f"Sampler: euler_a karras, Version: stable-diffusion.cpp, SDCPP: {json.dumps(details)}"
    )
    record = read(text)
    assert record.request == TextToImage(
        prompt="a bear",
        negative="red",
        steps=20,
        guidance=7,
        seed=42,
        width=512,
        height=512,
        sampler="euler_ancestral",
        schedule="karras",
    )
    assert record.model == "sd-v1-4.ckpt"
    assert record.notes == ("control_net: canny.gguf", "SLG scale: 2.5", "Skip layers: [7, 8, 9, ]")
    escaped = text.replace("&", "&amp;").replace('"', "&quot;")
    xmp = (
        '<?xpacket begin=""?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '<rdf:Description xmlns:sdcpp="https://github.com/leejet/stable-diffusion.cpp/ns/1.0/">\n'
        f"<sdcpp:parameters>{escaped}</sdcpp:parameters>\n</rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>"
    )
    Image.new("RGB", (64, 48)).save(tmp_path / "x.webp", xmp=xmp.encode())
    assert read_record(tmp_path / "x.webp") == record
    cuda = read(text.replace("RNG: cpu", "RNG: cuda").replace("euler_a karras", "dpm++2m discrete")).request
    assert (cuda.rng, cuda.sampler, cuda.schedule) == ("gpu", "dpmpp_2m", "normal")


def test_civitai(read: Text) -> None:
    """Civitai ebed661: resources as JSON without quotes, whose commas and words are none of the text's."""
    resources = [
        {"type": "checkpoint", "modelVersionId": 128713, "modelName": "DreamShaper", "modelVersionName": "8"},
        {"type": "lora", "weight": 0.8, "modelVersionId": 7, "modelName": "Ink, (rain:1.2)\nSteps: 9, Seed: 1"},
    ]
    metadata = {"workflow": "txt2img", "prompt": "Steps: 3, Seed: 2", "nested": {"a": [1, 2, "}"]}}
    record = read(
        "a bear\nNegative prompt: red\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 11, Size: 512x512, "
        f"Clip skip: 2, Created Date: 2025-11-28T09:18:43.5269343Z, Civitai resources: {json.dumps(resources)}, "
        f"Civitai metadata: {json.dumps(metadata)}"
    )
    request = record.request
    assert isinstance(request, TextToImage)
    assert (request.prompt, request.negative, request.steps, request.seed) == ("a bear", "red", 25, 11)
    assert (request.sampler, request.schedule, request.clip_skip) == ("dpmpp_2m", "karras", 2)
    assert record.model == "DreamShaper 8"
    assert "Civitai resources: lora 'Ink, (rain:1.2) Steps: 9, Seed: 1' of weight 0.8" in record.notes
    assert len(record.notes) == 2  # and that nothing says how it draws noise


def test_fooocus_in_the_scheme_of_a1111(read: Text) -> None:
    """Fooocus 2.5.5, modules/meta_parser.py A1111MetadataParser.to_string."""
    record = read(
        "a bear, cinematic still\nNegative prompt: anime\nSteps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 123, "
        'Size: 1152x896, CFG scale: 4, Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", '
        "Model: juggernautXL_v8Rundiffusion, Model hash: aeb7e9e689, Performance: Speed, Scheduler: karras, "
        "VAE: Default (model), Raw prompt: a bear, "
        'Lora hashes: "ink: 12ab", Lora weights: "ink: 0.5", Clip skip: 2, Version: Fooocus v2.5.5'
    )
    request = record.request
    assert isinstance(request, TextToImage)
    assert request.prompt == "a bear, cinematic still <lora:ink:0.5>"
    assert (request.sampler, request.schedule, request.clip_skip) == ("dpmpp_2m_sde", "karras", 1)
    assert [note.partition(":")[0] for note in record.notes] == ["noise", "Sharpness", "ADM Guidance", "VAE"]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_in_exif(suffix: str, encoding: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(encoding)
    Image.new("RGB", (64, 48)).save(tmp_path / f"x.{suffix}", exif=exif)
    assert read_record(tmp_path / f"x.{suffix}").request.seed == 965400086


def test_a_comment_of_a_camera_is_no_prompt(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0Screenshot"
    Image.new("RGB", (64, 48)).save(tmp_path / "x.jpg", exif=exif)
    with pytest.raises(ReverieError, match="does not say how it was made"):
        read_record(tmp_path / "x.jpg")


def test_what_we_write_reads_back(read: Text) -> None:
    for sampler in SAMPLERS:
        request = TextToImage(
            prompt="一只熊,\nNegative: x",
            negative='say "no", twice: no',
            sampler=sampler,
            seed=5,
            guidance=6.5,
            width=64,
            height=32,
            rng="cpu_then_gpu",
            cache_steps=3,
            merge_tokens=0.5,
            guidance_interval=(0.2, 0.8),
        )
        record = read(texts(request, "a, b: c")["parameters"])
        assert (record.request, record.model) == (request, "a, b: c")


def test_eta_is_read_where_it_was_in_force(read: Text) -> None:
    """stable-diffusion-webui 1.10, sd_samplers_common.py and sd_samplers_timesteps.py: eta_infotext_field."""
    text = "a\nSteps: 20, Sampler: {}, CFG scale: 7, Seed: 1, Size: 64x64, {}, RNG: CPU, Version: v1.10.1"
    assert read(text.format("Euler a", "Eta: 0.67")).request.eta == 0.67
    assert read(text.format("DDIM", "Eta DDIM: 0.5")).request.eta == 0.5
    assert read(text.format("Euler", "Eta: 0.67")).notes == ("Eta: 0.67",)


def test_aligned_steps_are_those_of_the_size_s_family(read: Text) -> None:
    text = "a\nSteps: 12, Sampler: Euler, Schedule type: Align Your Steps, CFG scale: 7, Seed: 1, Size: {}, RNG: CPU, "
    for size, schedule in (("512x512", "align_your_steps"), ("1024x1024", "align_your_steps_xl")):
        record = read(text.format(size) + "Version: v1.10.1")
        assert record.request.schedule == schedule
        assert record.notes == ("schedule: Align Your Steps has a level more above 0 there, of as many steps",)


def test_our_own_parameters_miss_nothing(read: Text) -> None:
    """As after another program has kept AUTOMATIC1111's text and dropped ours."""
    free = TextToImage(prompt="a", seed=7, guidance=3, width=64, height=48, sampler="tcd", eta=0.5)
    for levels in ({"timesteps": (999, 600.5, 3)}, {"sigmas": (14.6, 0.03, 1e-05, 0)}):
        asked = free.replace(**levels, steps=3)
        assert read(texts(asked, "mine")["parameters"]) == Record(asked, "mine")
    size = {"width": 64, "height": 48, "hires": Hires(steps=5)}
    request = TextToImage(prompt="a bear", seed=7, guidance=3, clip_skip=2, tile="x", **size)
    record = read(texts(request, "mine")["parameters"])
    assert record == Record(request.replace(hires=Hires(steps=5, width=128, height=96)), "mine")


REFINED = "a\nSteps: 20, Sampler: Euler, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU, "


@pytest.mark.parametrize(
    ("rest", "switch"),
    [
        ("Version: v1.10.1", 0.8),  # of the timesteps (stable-diffusion-webui 044494d, sd_samplers_common.py)
        ("Refiner switch by sampling steps: True, Version: v1.10.1", way_at("karras", 16, 20)),
        ("Version: v1.9.4", way_at("karras", 16, 20)),
        ("Version: f2.0.1v1.10.1-previous-659-gc055f2d4", way_at("karras", 16, 20)),  # Forge, of its steps
    ],
)
def test_a_refiner_takes_the_last_steps_where_its_file_is_here(
    read: Text, tmp_path: Path, rest: str, switch: float
) -> None:
    text = f"{REFINED}Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.8, {rest}"
    record = read(text)
    assert record.request.refiner is None
    assert record.notes == (
        "Refiner: sd_xl_refiner_1.0, switch at 0.8; its file is neither beside the picture nor in REVERIE_MODEL_DIR",
    )
    (tmp_path / "sd_xl_refiner_1.0.safetensors").touch()
    record = read(text)
    assert record.notes == ()
    assert record.request.refiner == Refiner(model=str(tmp_path / "sd_xl_refiner_1.0.safetensors"), switch=switch)


def test_a_text_whose_line_breaks_were_lost_keeps_its_prompts(read: Text) -> None:
    settings = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, RNG: CPU, Version: v1.10.1"
    whole = read(f"a cat, sitting\nNegative prompt: bad, worse\n{settings}")
    assert whole.request.prompt == "a cat, sitting"
    assert read(f"a cat, sitting Negative prompt: bad, worse {settings}") == whole
    assert read(f"a cat, sitting {settings}").request == whole.request.replace(negative="")
    kept = read(f"a cat, Steps: 5, walking\n{settings}")
    assert kept.request.prompt == "a cat, Steps: 5, walking"


def test_a_random_seed_is_said_to_be_another(read: Text) -> None:
    record = read("a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: -1, Size: 64x64, RNG: CPU, Version: v1.10.1")
    assert record.notes == ("seed: -1 stands for a random one, which the file does not name; another is drawn",)


def test_resize_and_fill_keeps_the_picture_whole_between_its_stretched_edges() -> None:
    """AUTOMATIC1111's resize_mode 2 (modules/images.py: resize_image)."""
    picture = Image.linear_gradient("L").resize((32, 16)).convert("RGB")
    encoded = base64.b64encode(encode(picture)).decode()
    asked = {"prompt": "a bear", "init_images": [encoded], "mask": encoded, "resize_mode": 2, "width": 16, "height": 16}
    fields = draft_of(Redrawing.model_validate(asked), WebOptions()).fields
    for name in ("init", "mask"):
        rows = np.asarray(decode(content_of(fields[name])), int)
        assert rows.shape[:2] == (16, 16)
        assert (rows[:4] == rows[4]).all()
        assert (rows[12:] == rows[11]).all()
        assert (np.diff(rows[4:12, 0, 0]) > 0).all()
