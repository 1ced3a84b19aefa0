"""ComfyUI's graphs: links with output slots, values behind other nodes, what is unknown."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reverie.diffusion.schedule import scaled_linear
from reverie.diffusion.spacings import SPACINGS
from reverie.errors import ReverieError
from reverie.generate.sample import level_at
from reverie.requests.base import steps_taken
from reverie.requests.foreign import core_nodes
from reverie.requests.music import Music
from reverie.requests.parts import ControlInput, Hires, IPAdapterInput, Region
from reverie.requests.pictures import ImageToImage, Inpaint, TextToImage
from reverie.requests.records import Record, read_record

Graph = dict[str, Any]
WEIGHTS = "weights in the prompt: ComfyUI weighs words against an empty prompt, here A1111's way is taken"


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


def graph(**changes: dict[str, object]) -> Graph:
    """Give ComfyUI's graph for a checkpoint, a LoRA and one sampler, with some nodes changed."""
    sampler: dict[str, object] = {"seed": 2**33 + 5, "steps": 25, "cfg": 6.5, "sampler_name": "dpmpp_2m"}
    sampler |= {"scheduler": "karras", "denoise": 1, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0]}
    strengths = {"strength_model": 0.8, "strength_clip": 0.5}
    nodes = {
        "4": node("CheckpointLoaderSimple", ckpt_name="sd/v1-5.safetensors"),
        "10": node("LoraLoader", lora_name="styles\\ink.safetensors", model=["4", 0], clip=["4", 1], **strengths),
        "11": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
        "5": node("EmptyLatentImage", width=640, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a bear", clip=["11", 0]),
        "7": node("CLIPTextEncode", text="red", clip=["11", 0]),
        "3": node("KSampler", latent_image=["5", 0], **sampler),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
    }
    return nodes | {name.lstrip("n"): one for name, one in changes.items()}


REQUEST = TextToImage(
    prompt="a bear <lora:ink:0.5:0.8>",
    negative="red",
    seed=5,
    steps=25,
    guidance=6.5,
    sampler="dpmpp_2m",
    schedule="karras",
    width=640,
    height=512,
    clip_skip=2,
    rng="cpu_then_gpu",
    zero_negative=False,
)
Read = Callable[[Graph], Record]


@pytest.fixture
def read(read_png: Callable[[dict[str, str]], Record]) -> Read:
    return lambda nodes: read_png({"prompt": json.dumps(nodes), "workflow": "{}"})


def changed(nodes: Graph, name: str, **inputs: object) -> Graph:
    return nodes | {name: {**nodes[name], "inputs": {**nodes[name]["inputs"], **inputs}}}


def test_a_checkpoint_a_lora_and_one_sampler(read: Read) -> None:
    assert read(graph()) == Record(REQUEST, "sd/v1-5.safetensors")


def test_a_link_names_a_slot(read: Read) -> None:
    """ControlNetApplyAdvanced and InpaintModelConditioning give the positive at 0 and the negative at 1 (nodes.py)."""
    control = node(
        "ControlNetApplyAdvanced",
        positive=["6", 0],
        negative=["7", 0],
        control_net=["21", 0],
        image=["22", 0],
        strength=0.9,
        start_percent=0.0,
        end_percent=0.8,
    )
    nodes = changed(graph(n20=control), "3", positive=["20", 0], negative=["20", 1])
    nodes |= {"21": node("ControlNetLoader", control_net_name="canny.pth"), "22": node("LoadImage", image="a.png")}
    record = read(nodes)
    assert record.request == REQUEST
    assert record.notes == (
        "ControlNet: 'canny.pth' with the picture 'a.png'; weight 0.9, start 0.0, end 0.8; "
        "they are neither beside the picture nor in REVERIE_MODEL_DIR",
    )
    inpaint = node("InpaintModelConditioning", positive=["6", 0], negative=["7", 0], vae=["4", 2], pixels=["22", 0])
    nodes = changed(nodes | {"20": inpaint}, "3", latent_image=["20", 2])
    record = read(nodes)
    assert (record.request.prompt, record.request.negative) == (REQUEST.prompt, "red")
    assert "the picture that it started from is not in the file" in record.notes


def test_zeroed_conditionings_are_zeros(read: Read) -> None:
    nodes = changed(graph(n20=node("ConditioningZeroOut", conditioning=["6", 0])), "3", negative=["20", 0])
    assert read(nodes) == Record(REQUEST.replace(negative="", zero_negative=True), "sd/v1-5.safetensors")


def test_values_may_be_links(read: Read) -> None:
    nodes = graph(
        n30=node("PrimitiveInt", value=30),
        n31=node("PrimitiveFloat", value=0.75),
        n32=node("PrimitiveStringMultiline", value="a bear"),
        n33=node("StringConcatenate", string_a=["32", 0], string_b="on a ball", delimiter=", "),
        n34=node("ShowText|pysssss", text=["33", 0], text_0="of the run before"),
        n35=node("ImpactWildcardProcessor", wildcard_text="__c__", populated_text="blue", mode=True, seed=4),
        n36=node("Text Concatenate", text_a=["34", 0], text_b=["35", 0], delimiter=", ", clean_whitespace="true"),
        n37=node("Seed (rgthree)", seed=77),
        n38=node("PrimitiveFloat", value=1.0),
    )
    nodes = changed(nodes, "3", steps=["30", 0], seed=["37", 0], denoise=["38", 0])
    nodes = changed(changed(nodes, "10", strength_model=["31", 0]), "6", text=["36", 0])
    expected = REQUEST.replace(prompt="a bear, on a ball, blue <lora:ink:0.5:0.75>", steps=30, seed=77)
    assert read(nodes) == Record(expected, "sd/v1-5.safetensors")


@pytest.mark.parametrize(
    ("where", "inputs", "complaint"),
    [
        ("6", {"text": ["20", 0]}, "the text of CLIPTextEncode comes from MagicPrompt, which is not understood"),
        ("7", {"text": ["20", 0]}, "the text of CLIPTextEncode comes from MagicPrompt, which is not understood"),
        ("3", {"seed": ["20", 0]}, "the seed of KSampler is not in the graph, or comes from a node"),
        ("10", {"strength_model": ["20", 0]}, "the weight of the LoRA .* is no number"),
        ("3", {"positive": ["nowhere", 0]}, "the positive conditioning of KSampler is not understood"),
    ],
)
def test_what_decides_the_picture_and_cannot_be_resolved_stops(
    where: str, inputs: dict[str, object], complaint: str, read: Read
) -> None:
    nodes = changed(graph(n20=node("MagicPrompt", mood="dark", strength=3)), where, **inputs)
    with pytest.raises(ReverieError, match=complaint):
        read(nodes)


def test_what_else_cannot_be_resolved_is_noted(read: Read) -> None:
    links = {"steps": ["20", 0], "cfg": ["20", 0], "denoise": ["20", 0], "sampler_name": ["20", 0]}
    record = read(changed(graph(n20=node("MagicNumber", mood="dark")), "3", **links))
    assert record.request == REQUEST.replace(steps=20, guidance=None)
    assert [note.partition(":")[0] for note in record.notes] == ["steps", "guidance", "sampler", "denoise"]


def test_saved_pictures_count_before_previews(read: Read) -> None:
    other = graph()["3"]["inputs"] | {"seed": 1, "latent_image": ["5", 0]}
    first = {
        "0": node("PreviewImage", images=["18", 0]),
        "18": node("VAEDecode", samples=["13", 0], vae=["4", 2]),
        "13": node("KSampler", **other),
    }
    assert read(first | graph()).request == REQUEST
    assert read(first | {"1": node("PreviewImage", images=["4", 0])} | graph()).request == REQUEST


def test_of_several_saved_pictures_the_one_of_this_size_is_read(read: Read) -> None:
    other = graph()["3"]["inputs"] | {"seed": 1, "latent_image": ["15", 0]}
    nodes = graph() | {
        "15": node("EmptyLatentImage", width=64, height=48, batch_size=1),
        "13": node("KSampler", **other),
        "18": node("VAEDecode", samples=["13", 0], vae=["4", 2]),
        "19": node("SaveImage", images=["18", 0]),
    }
    record = read(nodes)
    assert record.request == REQUEST.replace(seed=1, width=64, height=48)
    assert "the graph saves pictures of 2 samplers; the one of this picture's size is read" in record.notes


def test_samplers_made_of_nodes(read: Read) -> None:
    """comfy_extras/nodes_custom_sampler.py."""
    parts = {
        "40": node("RandomNoise", noise_seed=9),
        "41": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "42": node("BasicScheduler", model=["10", 0], scheduler="sgm_uniform", steps=12, denoise=1.0),
        "43": node("CFGGuider", model=["10", 0], positive=["6", 0], negative=["7", 0], cfg=4.0),
        "3": node(
            "SamplerCustomAdvanced",
            noise=["40", 0],
            guider=["43", 0],
            sampler=["41", 0],
            sigmas=["42", 0],
            latent_image=["5", 0],
        ),
    }
    nodes = changed(graph() | parts, "8", samples=["3", 1])
    expected = REQUEST.replace(seed=9, sampler="euler_ancestral", schedule="sgm_uniform", steps=12, guidance=4)
    assert read(nodes) == Record(expected, "sd/v1-5.safetensors")
    basic = nodes | {"43": node("BasicGuider", model=["10", 0], conditioning=["6", 0])}
    assert read(basic).request == expected.replace(guidance=1, negative="")
    custom = node(
        "SamplerCustom",
        add_noise=True,
        noise_seed=9,
        cfg=4.0,
        model=["10", 0],
        positive=["6", 0],
        negative=["7", 0],
        sampler=["41", 0],
        sigmas=["44", 0],
        latent_image=["5", 0],
    )
    karras = node("KarrasScheduler", steps=12, sigma_max=14.614642, sigma_min=0.0291675, rho=5.0)
    record = read(nodes | {"3": custom, "44": karras})
    assert record.request == expected.replace(schedule="karras")
    assert record.notes == ("node KarrasScheduler: rho 5.0",)


def test_nodes_that_write_out_levels_and_say_how_much_noise_is_fresh(read: Read) -> None:
    """comfy_extras/nodes_custom_sampler.py: ManualSigmas, SamplerEulerAncestral; ComfyUI-TCD 636c368, __init__.py."""
    inputs = {"noise": ["40", 0], "guider": ["43", 0], "sampler": ["41", 0], "sigmas": ["42", 0]}
    nodes = graph() | {
        "40": node("RandomNoise", noise_seed=9),
        "41": node("SamplerEulerAncestral", eta=0.5, s_noise=1.0),
        "42": node("ManualSigmas", sigmas="14.6, 3, .5, 0.0"),
        "43": node("CFGGuider", model=["10", 0], positive=["6", 0], negative=["7", 0], cfg=4.0),
        "3": node("SamplerCustomAdvanced", **inputs, latent_image=["5", 0]),
    }
    expected = REQUEST.replace(seed=9, sampler="euler_ancestral", eta=0.5, schedule="karras", steps=3, guidance=4)
    assert read(nodes) == Record(expected.replace(sigmas=(14.6, 3, 0.5, 0)), "sd/v1-5.safetensors")
    nodes["42"] = node("AlignYourStepsScheduler", model_type="SDXL", steps=12, denoise=1.0)
    assert read(nodes) == Record(expected.replace(schedule="align_your_steps_xl", steps=12), "sd/v1-5.safetensors")
    nodes["42"] = node("GITSScheduler", coeff=1.2, steps=8, denoise=1.0)
    assert read(nodes) == Record(expected.replace(schedule="gits", steps=8), "sd/v1-5.safetensors")
    nodes["42"] = node("GITSScheduler", coeff=0.9, steps=8, denoise=1.0)
    assert read(nodes).notes == ("node GITSScheduler: coeff 0.9",)
    nodes["44"] = node("TCDModelSamplingDiscrete", model=["10", 0], steps=4, scheduler="simple", denoise=1.0, eta=0.2)
    nodes |= {"43": node("CFGGuider", model=["44", 0], positive=["6", 0], negative=["7", 0], cfg=1.0)}
    nodes |= {"3": node("SamplerCustomAdvanced", **inputs | {"sampler": ["44", 1], "sigmas": ["44", 2]})}
    record = read(changed(nodes, "3", latent_image=["5", 0]))
    expected = REQUEST.replace(seed=9, sampler="tcd", eta=0.2, schedule="tcd", steps=4, guidance=1)
    assert record == Record(expected, "sd/v1-5.safetensors")


def test_levels_of_some_samplers(read: Read) -> None:
    """comfy/samplers.py: KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS, which levels made by nodes know nothing of."""
    nodes = changed(graph(), "3", sampler_name="uni_pc", scheduler="ddim_uniform")
    expected = REQUEST.replace(sampler="unipc_bh1", schedule="ddim_uniform", discard_penultimate=True)
    assert read(nodes).request == expected
    nodes = changed(graph(), "3", sampler_name="uni_pc_bh2", scheduler="simple")
    assert read(nodes).request == expected.replace(sampler="unipc_bh2", schedule="simple")


def test_sdxl(read: Read) -> None:
    """comfy_extras/nodes_clip_sdxl.py; its usual layer is -2."""
    sizes = {"width": 2048, "height": 1024, "crop_w": 8, "crop_h": 16, "target_width": 1024, "target_height": 512}
    nodes = graph(
        n6=node("CLIPTextEncodeSDXL", text_g="a bear", text_l="brown", clip=["11", 0], **sizes),
        n12=node("VAELoader", vae_name="sdxl_vae.safetensors"),
    )
    record = read(changed(nodes, "8", vae=["12", 0]))
    request = record.request
    assert isinstance(request, TextToImage)
    assert (request.original_size, request.crop, request.target_size) == ((2048, 1024), (8, 16), (1024, 512))
    assert request.clip_skip == 1
    assert record.notes == (
        "node VAELoader: sdxl_vae.safetensors",
        "node CLIPTextEncodeSDXL: text_l, another prompt for the first encoder: brown",
    )


def test_prompts_of_several_conditionings(read: Read) -> None:
    """nodes.py: ConditioningConcat lays tokens behind each other, ConditioningCombine averages predictions."""
    nodes = graph(
        n20=node("CLIPTextEncode", text="a ball", clip=["11", 0]),
        n21=node("ConditioningConcat", conditioning_to=["6", 0], conditioning_from=["20", 0]),
    )
    record = read(changed(nodes, "3", positive=["21", 0]))
    assert record == Record(REQUEST.replace(prompt="a bear BREAK a ball <lora:ink:0.5:0.8>"), "sd/v1-5.safetensors")
    nodes["21"] = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["20", 0])
    record = read(changed(nodes, "3", positive=["21", 0]))
    assert record.request == REQUEST.replace(prompt="a bear :0.5 AND a ball :0.5 <lora:ink:0.5:0.8>")
    assert record.notes == ("node ConditioningCombine: two prompts, written as one with AND",)
    nodes["21"] = node("ConditioningSetTimestepRange", conditioning=["6", 0], start=0.0, end=0.4)
    record = read(changed(nodes, "3", positive=["21", 0]))
    assert (record.request, record.notes) == (REQUEST, ("node ConditioningSetTimestepRange: end 0.4",))


def test_what_is_not_known_is_passed_and_noted(read: Read) -> None:
    nodes = graph(
        n20=node("MagicGuidance", model=["10", 0], power=3),
        n21=node("FaceFixer", image=["8", 0], seed=4, steps=3, positive=["6", 0], negative=["7", 0]),
    )
    nodes = changed(changed(nodes, "3", model=["20", 0]), "9", images=["21", 0])
    record = read(changed(nodes, "5", batch_size=4))
    assert record.request == REQUEST
    assert [note.partition(":")[0] for note in record.notes] == ["batch_size", "node FaceFixer", "node MagicGuidance"]


def second_pass(**changes: object) -> Graph:
    """Give ComfyUI's graph with its second pass over enlarged latents, the sampler of which has some inputs changed."""
    nodes = graph(
        n22=node("LatentUpscale", samples=["3", 0], upscale_method="bilinear", width=960, height=768, crop="disabled"),
        n13=node("KSampler", **graph()["3"]["inputs"] | {"denoise": 0.5, "latent_image": ["22", 0]} | changes),
    )
    return changed(nodes, "8", samples=["13", 0])


def test_a_second_pass_over_enlarged_latents(read: Read) -> None:
    """comfy/samplers.py, KSampler.set_steps: n steps of denoise d are the last n of int(n / d)."""
    hires = Hires(width=960, height=768, steps=50, strength=0.5)
    assert read(second_pass()) == Record(REQUEST.replace(hires=hires), "sd/v1-5.safetensors")
    for steps, denoise, whole in ((14, 0.55, 25), (9, 0.3, 30), (20, 0.99, 20), (7, 0.37, 18)):
        found = read(second_pass(steps=steps, denoise=denoise)).request.hires
        assert found is not None
        assert (found.steps, steps_taken(whole, found.strength)) == (whole, steps)
    by = changed(second_pass(), "22", scale_by=1.5, width=None, height=None)
    by["22"] = node("LatentUpscaleBy", samples=["3", 0], upscale_method="bilinear", scale_by=1.5)
    assert read(by).request.hires == hires
    sharp = changed(second_pass(), "22", upscale_method="bicubic")
    assert read(sharp) == Record(REQUEST.replace(hires=hires.replace(upscaler="latent-bicubic")), "sd/v1-5.safetensors")


def test_what_a_second_pass_has_of_its_own_is_noted(read: Read) -> None:
    nodes = second_pass(seed=1, sampler_name="euler", scheduler="simple", cfg=8, positive=["30", 0], model=["4", 0])
    nodes = changed(
        nodes | {"30": node("CLIPTextEncode", text="a cat", clip=["11", 0])}, "22", upscale_method="bislerp"
    )
    record = read(nodes)
    assert record.request == REQUEST.replace(hires=Hires(width=960, height=768, steps=50, strength=0.5))
    assert record.notes == (
        "the second pass: sampler euler; here it has the first's",
        "the second pass: schedule simple; here it has the first's",
        "the second pass: guidance 8; here it has the first's",
        "the second pass: prompt a cat; here it has the first's",
        "the second pass: model sd/v1-5.safetensors, or other LoRAs",
        "the second pass: seed 1; here it has the first's",
        "node LatentUpscale: upscale_method bislerp",
    )


def test_a_second_pass_over_an_enlarged_picture(read: Read) -> None:
    """nodes.py and comfy_extras/nodes_upscale_model.py: decoded, enlarged by a network, scaled, encoded."""
    nodes = second_pass(latent_image=["25", 0]) | {
        "21": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "22": node("ImageUpscaleWithModel", upscale_model=["23", 0], image=["21", 0]),
        "23": node("UpscaleModelLoader", model_name="RealESRGAN_x4plus.pth"),
        "24": node("ImageScaleBy", image=["22", 0], upscale_method="lanczos", scale_by=0.5),
        "25": node("VAEEncode", pixels=["24", 0], vae=["4", 2]),
    }
    record = read(nodes)
    assert record.request.hires == Hires(width=1280, height=1024, steps=50, strength=0.5, upscaler="lanczos")
    assert record.notes == ("node ImageUpscaleWithModel",)
    nodes = changed(nodes, "24", scale_by=["1", 0])
    assert read(nodes).request.hires == Hires(width=64, height=48, steps=50, strength=0.5, upscaler="lanczos")
    nodes = changed(nodes | {"1": node("MagicNumber")}, "13", steps=["1", 0])
    assert read(nodes).request.hires is None
    assert read(nodes).notes[0].startswith("a further KSampler of None steps")


def test_a_picture_that_is_enlarged_at_the_end_is_noted(read: Read) -> None:
    nodes = graph(n20=node("ImageScaleBy", image=["8", 0], upscale_method="lanczos", scale_by=2))
    record = read(changed(nodes, "9", images=["20", 0]))
    assert (record.request, record.notes) == (REQUEST, ("node ImageScaleBy: upscale_method lanczos, scale_by 2",))


def handed_over(**changes: object) -> Graph:
    """Give the graph of ComfyUI's SDXL examples: two KSamplerAdvanced of one run, by two checkpoints."""
    inputs = graph()["3"]["inputs"] | {"noise_seed": 5, "steps": 25, "scheduler": "normal"}
    inputs = {name: value for name, value in inputs.items() if name not in ("seed", "denoise")}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 20, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "start_at_step": 20, "end_at_step": 10000, "noise_seed": 0}
    second |= {"latent_image": ["3", 0], "model": ["30", 0], "return_with_leftover_noise": "disable"}
    nodes = graph(
        n3=node("KSamplerAdvanced", **inputs | first),
        n13=node("KSamplerAdvanced", **inputs | second | changes),
        n30=node("CheckpointLoaderSimple", ckpt_name="xl/refiner.safetensors"),
    )
    return changed(nodes, "8", samples=["13", 0])


def test_a_refiner_takes_the_last_steps_where_its_file_is_here(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read(handed_over())
    assert record.request == REQUEST.replace(schedule="normal")
    assert record.notes == (
        "Refiner: xl/refiner.safetensors, from step 20 of 25 on; "
        "its file is neither beside the picture nor in REVERIE_MODEL_DIR",
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models/refiner.safetensors").touch()
    monkeypatch.setenv("REVERIE_MODEL_DIR", str(tmp_path / "models"))
    for scheduler in ("normal", "karras", "exponential", "sgm_uniform", "simple"):
        nodes = changed(changed(handed_over(), "3", scheduler=scheduler), "13", scheduler=scheduler)
        record = read(nodes)
        assert record.notes == ()
        refiner = record.request.refiner
        assert refiner is not None
        assert refiner.model == str(tmp_path / "models/refiner.safetensors")
        sigmas = SPACINGS[scheduler](scaled_linear(), 25)  # of our own levels the last five are its
        below = sigmas[:-1] < level_at(scaled_linear(), refiner.switch)
        assert below.tolist() == [False] * 20 + [True] * 5


def test_two_samplers_of_one_run_and_one_model_are_one(read: Read) -> None:
    one = {"model": ["10", 0]}
    assert read(handed_over(**one)) == Record(REQUEST.replace(schedule="normal"), "sd/v1-5.safetensors")
    record = read(handed_over(**one, cfg=3, sampler_name="euler"))
    assert record.notes == (
        "the steps from there on: sampler euler; here it has the first's",
        "the steps from there on: guidance 3; here it has the first's",
    )
    alone = changed(handed_over(), "8", samples=["3", 0])
    assert read(alone).notes == ("KSamplerAdvanced: steps 0 to 20 of 25 alone",)
    noisy = read(handed_over(add_noise="enable", **one))
    assert noisy.notes[0] == "KSamplerAdvanced: steps 0 to 20 of 25 alone"
    assert noisy.request.hires == Hires(width=640, height=512, steps=25, strength=0.2)


def test_levels_that_are_split_between_two_samplers(read: Read) -> None:
    """comfy_extras/nodes_custom_sampler.py: SplitSigmas, DisableNoise."""
    inputs = {"noise": ["40", 0], "guider": ["43", 0], "sampler": ["41", 0], "sigmas": ["44", 0]}
    nodes = graph() | {
        "40": node("RandomNoise", noise_seed=9),
        "39": node("DisableNoise"),
        "41": node("KSamplerSelect", sampler_name="euler"),
        "42": node("BasicScheduler", model=["10", 0], scheduler="karras", steps=12, denoise=1.0),
        "43": node("CFGGuider", model=["10", 0], positive=["6", 0], negative=["7", 0], cfg=4.0),
        "44": node("SplitSigmas", sigmas=["42", 0], step=8),
        "3": node("SamplerCustomAdvanced", **inputs, latent_image=["5", 0]),
        "13": node(
            "SamplerCustomAdvanced", **inputs | {"noise": ["39", 0], "sigmas": ["44", 1]}, latent_image=["3", 0]
        ),
    }
    expected = REQUEST.replace(seed=9, sampler="euler", steps=12, guidance=4)
    assert read(changed(nodes, "8", samples=["13", 0])) == Record(expected, "sd/v1-5.safetensors")
    alone = read(changed(nodes, "8", samples=["3", 0]))
    assert alone.notes == ("SamplerCustomAdvanced: steps 0 to 8 of 12 alone",)


def test_a_controlnet_acts_where_its_file_and_its_picture_are_here(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = {"positive": ["6", 0], "negative": ["7", 0], "control_net": ["21", 0], "image": ["22", 0], "strength": 0.9}
    nodes = graph(
        n20=node("ControlNetApplyAdvanced", **apply, start_percent=0.1, end_percent=0.8),
        n21=node("ControlNetLoader", control_net_name="sd15/canny.pth"),
        n22=node("LoadImage", image="edges.png"),
    )
    nodes = changed(nodes, "3", positive=["20", 0], negative=["20", 1])
    (tmp_path / "models").mkdir()
    (tmp_path / "models/canny.pth").touch()
    monkeypatch.setenv("REVERIE_MODEL_DIR", str(tmp_path / "models"))
    assert "the picture is neither beside" in read(nodes).notes[0]
    Image.new("RGB", (64, 48), "white").save(tmp_path / "edges.png")
    record = read(nodes)
    control = ControlInput(
        model=str(tmp_path / "models/canny.pth"), image=tmp_path / "edges.png", weight=0.9, start=0.1, end=0.8
    )
    assert record == Record(REQUEST.replace(controls=(control,)), "sd/v1-5.safetensors")
    union = nodes | {"24": node("SetUnionControlNetType", control_net=["21", 0], type="hed/pidi/scribble/ted")}
    record = read(changed(union, "20", control_net=["24", 0]))
    assert record.request.controls == (control.replace(kind="softedge"),)
    assert read(changed(nodes, "20", strength=0)) == Record(REQUEST, "sd/v1-5.safetensors")
    nodes["23"] = node("Canny", image=["22", 0], low_threshold=0.4, high_threshold=0.8)
    record = read(changed(nodes, "20", image=["23", 0]))
    assert record.request.controls == ()
    assert record.notes[0].startswith("ControlNet: 'sd15/canny.pth' with a picture that is not in the file; weight 0.9")
    assert record.notes[1] == "node Canny: what makes the picture that the ControlNet 'sd15/canny.pth' sees"


def test_patches_of_the_model_that_are_fields_here(read: Read) -> None:
    """comfy_extras/nodes_pag.py and nodes_freelunch.py; FreeU tells levels by their width there."""
    nodes = graph(
        n30=node("PerturbedAttentionGuidance", model=["10", 0], scale=2.5),
        n31=node("FreeU", model=["30", 0], b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    )
    record = read(changed(nodes, "3", model=["31", 0]))
    assert record.request == REQUEST.replace(perturbed_guidance=2.5, freeu=(1.1, 1.2, 0.9, 0.2))
    assert record.notes == (
        "node FreeU: it tells levels by their width there, and here counts them, as diffusers does",
    )
    strange = changed(nodes | {"99": node("Strange")}, "30", scale=["99", 0])
    record = read(changed(strange, "3", model=["30", 0]))
    assert record.request == REQUEST
    assert record.notes[0].startswith("perturbed_guidance None is not possible")
    nodes["30"] = node("FreeU_V2", model=["10", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    assert read(changed(nodes, "3", model=["30", 0])).notes == ("node FreeU_V2: b1 1.3, b2 1.4, s1 0.9, s2 0.2",)


def test_an_ip_adapter_acts_where_its_files_and_its_picture_are_here(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI_IPAdapter_plus 01adae3, CrossAttentionPatch.py."""
    given = {"model": ["10", 0], "ipadapter": ["41", 0], "image": ["43", 0], "clip_vision": ["42", 0]}
    ways = {"weight": 0.7, "weight_type": "linear", "start_at": 0.1, "end_at": 0.9}
    nodes = graph(
        n40=node("IPAdapterAdvanced", **given, **ways, attn_mask=["44", 0]),
        n41=node("IPAdapterModelLoader", ipadapter_file="ip-adapter_sd15.safetensors"),
        n42=node("CLIPVisionLoader", clip_name="ViT-H.safetensors"),
        n43=node("LoadImage", image="hat.png"),
        n44=node("LoadImageMask", image="mask.png", channel="red"),
    )
    nodes = changed(nodes, "3", model=["40", 0])
    record = read(nodes)
    assert record.request == REQUEST
    assert record.notes == ("IP-Adapter ip-adapter_sd15.safetensors: its mask 'mask.png' is not here; it is left out",)
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("REVERIE_MODEL_DIR", str(tmp_path / "models"))
    for name in ("ip-adapter_sd15.safetensors", "ViT-H.safetensors"):
        (tmp_path / "models" / name).touch()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mask.png")
    note = "IP-Adapter ip-adapter_sd15.safetensors: hat.png is not here; it is left out"
    assert read(nodes).notes == (note,)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "hat.png")
    seen = IPAdapterInput(
        model=str(tmp_path / "models/ip-adapter_sd15.safetensors"),
        encoder=str(tmp_path / "models/ViT-H.safetensors"),
        images=[tmp_path / "hat.png"],
        weight=0.7,
        start=0.1,
        end=0.9,
        mask=Image.new("L", (8, 8), 255),
    )
    assert read(nodes) == Record(REQUEST.replace(ip_adapters=(seen,)), "sd/v1-5.safetensors")
    assert read(changed(nodes, "40", weight_type="style transfer")).notes == (
        "node IPAdapterAdvanced: weight_type style transfer",
    )
    other = changed(nodes, "40", embeds_scaling="K+V", image_negative=["43", 0])
    assert read(other).notes == (
        "node IPAdapterAdvanced: embeds_scaling K+V",
        "node IPAdapterAdvanced: image_negative, a picture to keep away from",
    )
    nodes["41"] = node("IPAdapterUnifiedLoader", model=["10", 0], preset="PLUS (high strength)")
    record = read(changed(nodes, "40", model=["41", 0]))
    assert record.request == REQUEST
    assert "IP-Adapter PLUS (high strength): PLUS (high strength) is not here; it is left out" in record.notes


BLENDED = "parts of the picture: ComfyUI blends their predictions, here attention is coupled"


def test_prompts_of_parts_of_the_picture_are_regions(read: Read, tmp_path: Path) -> None:
    """nodes.py: ConditioningSetArea, ConditioningSetAreaPercentage, ConditioningSetMask, ConditioningCombine."""
    nodes = graph(
        n50=node("CLIPTextEncode", text="an apple", clip=["11", 0]),
        n51=node("ConditioningSetArea", conditioning=["50", 0], x=320, y=0, width=320, height=256, strength=3.0),
        n52=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["51", 0]),
    )
    nodes = changed(nodes, "3", positive=["52", 0])
    region = Region(prompt="an apple", box=(0.5, 0, 1, 0.5), weight=0.75)
    assert read(nodes) == Record(REQUEST.replace(regions=(region,)), "sd/v1-5.safetensors", (BLENDED,))
    part = {"x": 0.5, "y": 0.0, "width": 0.5, "height": 0.5, "strength": 1.0}
    nodes["51"] = node("ConditioningSetAreaPercentage", conditioning=["50", 0], **part)
    assert read(nodes).request.regions == (region.replace(weight=0.5),)
    nodes["51"] = node("ConditioningSetMask", conditioning=["50", 0], mask=["53", 0], strength=1.0)
    nodes["53"] = node("LoadImageMask", image="mask.png", channel="alpha")
    left_out = "a part of the picture with the prompt an apple: its mask 'mask.png' is not here; it is left out"
    assert read(nodes) == Record(REQUEST, "sd/v1-5.safetensors", (left_out,))
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "mask.png")
    (masked,) = read(nodes).request.regions
    assert masked.mask.image().convert("L").getextrema() == (255, 255)
    nodes["54"] = node("ConditioningSetAreaPercentage", conditioning=["6", 0], **part | {"x": 0.0})
    record = read(changed(nodes, "52", conditioning_1=["54", 0]))
    assert record.request.prompt == "<lora:ink:0.5:0.8>"
    assert [one.prompt for one in record.request.regions] == ["a bear", "an apple"]
    assert [one.weight for one in record.request.regions] == [1, 1]
    unknown = read(changed(nodes | {"99": node("Strange")}, "51", mask=["99", 0]))
    assert unknown.request.prompt == "a bear :0.5 AND an apple :0.5 <lora:ink:0.5:0.8>"
    assert "node ConditioningSetMask: it is not understood; strength 1.0" in unknown.notes
    away = read(changed(changed(nodes, "3", positive=["6", 0], negative=["51", 0]), "7", text="x"))
    assert (away.request.negative, away.request.regions) == ("an apple", ())
    assert away.notes == ("parts of the picture in the negative prompt: here they hold for all of it",)


def test_what_words_mean_here_alone_or_there_alone_is_noted(read: Read) -> None:
    """comfy/sd1_clip.py: token_weights, escape_important, embedding_identifier."""
    assert read(changed(graph(), "6", text=r"a bear \(really\)")).notes == ()
    assert read(changed(graph(), "6", text="a (bear)")).notes == (WEIGHTS,)
    assert "[...], AND or BREAK" in read(changed(graph(), "6", text="a [bear]")).notes[0]
    record = read(changed(graph(), "7", text="red, embedding:easynegative.pt <lora:ink:1>"))
    assert record.request.negative == "red, easynegative "
    assert [note.partition(" ")[0] for note in record.notes] == ["<lora:ink:1>", "embedding:easynegative.pt:"]


def test_what_samples_nothing_is_refused(read: Read) -> None:
    nodes = {name: one for name, one in graph().items() if name != "3"}
    with pytest.raises(ReverieError, match="holds no sampler that leads to it"):
        read(nodes)


def test_a_circle_is_one_line(read: Read) -> None:
    nodes = changed(graph(n20=node("PrimitiveString", value=["20", 0])), "6", text=["20", 0])
    with pytest.raises(ReverieError, match=r"leads in a circle at node 20 \(PrimitiveString\)"):
        read(nodes)
    assert read(changed(graph(), "4", loop=["9", 0])).request == REQUEST


# ---- the files that ComfyUI writes (comfy_extras/nodes_images.py, nodes_video.py, nodes_audio.py) --------------------


def test_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(graph())
    exif[0x010F] = "workflow:{}"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + '{"what": "is this"}'.encode("utf-16-be")
    Image.new("RGB", (64, 48)).save(tmp_path / "x.webp", exif=exif)
    assert read_record(tmp_path / "x.webp").request == REQUEST


def test_animated_png_has_private_chunks_behind_the_pixels(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    data = (tmp_path / "x.png").read_bytes()
    body = b"comf" + b"prompt\0" + json.dumps(graph()).encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert read_record(tmp_path / "x.png").request == REQUEST


@pytest.mark.parametrize(
    ("suffix", "codec", "tag", "options"),
    [
        (".webm", "libvpx-vp9", "PROMPT", {}),
        (".mp4", "libx264", "prompt", {"movflags": "use_metadata_tags"}),
    ],
)
def test_films(suffix: str, codec: str, tag: str, options: dict[str, str], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / f"x{suffix}"), "w", options=options) as film:
        film.metadata[tag] = json.dumps(graph())
        stream = film.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame(64, 48, "yuv420p")), *stream.encode()):
            film.mux(packet)
    record = read_record(tmp_path / f"x{suffix}")
    assert record.request == REQUEST
    assert record.notes == ("a film: here one picture of its settings is drawn",)


def test_a_comment_of_video_helper_suite_is_its_graph(tmp_path: Path) -> None:
    """ComfyUI-VideoHelperSuite: one comment of JSON, in which prompt is text."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "x.mp4"), "w") as film:
        film.metadata["comment"] = json.dumps({"prompt": json.dumps(graph()), "workflow": {}})
        stream = film.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame(64, 48, "yuv420p")), *stream.encode()):
            film.mux(packet)
    assert read_record(tmp_path / "x.mp4").request == REQUEST


@pytest.mark.parametrize(("suffix", "codec", "on_stream"), [(".flac", "flac", False), (".opus", "libopus", True)])
def test_sounds(suffix: str, codec: str, on_stream: bool, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    nodes = graph(
        n5=node("EmptyLatentAudio", seconds=47.6, batch_size=1),
        n8=node("VAEDecodeAudio", samples=["3", 0], vae=["4", 2]),
        n9=node("SaveAudio", audio=["8", 0]),
    )
    with av.open(str(tmp_path / f"x{suffix}"), "w") as sound:
        stream = sound.add_stream(codec, rate=48000, layout="mono")
        (stream.metadata if on_stream else sound.metadata)["prompt"] = json.dumps(nodes)
        frame = av.AudioFrame(format="s16", layout="mono", samples=960)
        frame.sample_rate = 48000
        for packet in (*stream.encode(frame), *stream.encode()):
            sound.mux(packet)
    request = read_record(tmp_path / f"x{suffix}").request
    assert isinstance(request, Music)
    assert (request.prompt, request.seed, request.steps, request.sampler) == (REQUEST.prompt, 5, 25, "dpmpp_2m")


def test_a_picture_that_is_drawn_over_is_read_where_its_file_is_here(read: Read, tmp_path: Path) -> None:
    """comfy/samplers.py, set_steps: n steps of denoise d are the last n of int(n / d)."""
    nodes = graph(
        n20=node("LoadImage", image="start.png [input]"), n21=node("VAEEncode", pixels=["20", 0], vae=["4", 2])
    )
    nodes = changed(nodes, "3", latent_image=["21", 0], steps=7, denoise=0.35)
    missing = read(nodes)
    assert isinstance(missing.request, TextToImage)
    assert missing.notes[0].startswith("denoise: 0.35; what it started from is not in the file")
    picture = Image.linear_gradient("L").resize((64, 48))
    colours = Image.merge("RGB", (picture, picture, Image.new("L", (64, 48), 200)))
    colours.save(tmp_path / "start.png")
    record = read(nodes)
    assert record.notes == ()
    assert isinstance(record.request, ImageToImage)
    assert record.request.init.image().tobytes() == colours.tobytes()
    assert (record.request.steps, steps_taken(20, record.request.strength)) == (20, 7)
    colours.putalpha(picture)  # which ComfyUI drops
    colours.save(tmp_path / "start.png")
    hidden = read(nodes).request
    assert isinstance(hidden, ImageToImage)
    assert hidden.init.image().tobytes() == colours.convert("RGB").tobytes()


def test_masks_of_a_picture_that_is_painted_over(read: Read, tmp_path: Path) -> None:
    """nodes.py: LoadImage's mask is white where it is transparent; VAEEncodeForInpaint lets it grow by half."""
    nodes = graph(
        n20=node("LoadImage", image="start.png"),
        n21=node("VAEEncodeForInpaint", pixels=["20", 0], vae=["4", 2], mask=["20", 1], grow_mask_by=6),
    )
    nodes = changed(nodes, "3", latent_image=["21", 0])
    alpha = Image.new("L", (64, 48), 255)
    alpha.paste(0, (24, 16, 40, 32))
    picture = Image.new("RGB", (64, 48), "red")
    picture.putalpha(alpha)
    picture.save(tmp_path / "start.png")
    request = read(nodes).request
    assert isinstance(request, Inpaint)
    assert request.mask is not None
    mask = request.mask.image().convert("L")
    assert mask.getbbox() == (21, 13, 43, 35)
    assert (request.fill, request.mask_blur, request.strength) == ("nothing", 0, 1)
    nodes |= {
        "22": node("LoadImageMask", image="start.png", channel="red"),
        "23": node("VAEEncode", pixels=["20", 0], vae=["4", 2]),
        "21": node("SetLatentNoiseMask", samples=["23", 0], mask=["22", 0]),
    }
    request = read(nodes).request
    assert isinstance(request, Inpaint)
    assert request.mask is not None
    assert request.mask.image().convert("L").getextrema() == (255, 255)
    assert request.fill == "original"
    picture.convert("RGB").save(tmp_path / "start.png")
    record = read(changed(nodes | {"21": node("VAEEncodeForInpaint")}, "21", pixels=["20", 0], mask=["20", 1]))
    assert "'start.png' is the mask, and it has no transparent part" in record.notes


def test_an_embedding_is_taken_where_its_file_is_here(read: Read, tmp_path: Path) -> None:
    nodes = changed(graph(), "6", text="a bear, embedding:sub/easy.pt")
    assert read(nodes).notes == ("embedding:sub/easy.pt: a textual inversion, whose file is to be given",)
    (tmp_path / "easy.pt").touch()
    record = read(nodes)
    assert (record.notes, record.request.embeddings) == ((), (str(tmp_path / "easy.pt"),))


def test_a_graph_to_be_drawn_is_honoured_whole_or_refused(tmp_path: Path) -> None:
    """ComfyUI's examples of SDXL's refiner and of ControlNet, with the files that they name here or not."""
    for name in ("canny.pth", "refiner.safetensors", "easy.pt"):
        (tmp_path / name).touch()
    Image.new("RGB", (64, 48), "white").save(tmp_path / "edges.png")
    controlled = changed(graph(), "6", text="a (red:1.2) bear, embedding:easy") | {
        "20": node("ControlNetApply", conditioning=["6", 0], control_net=["21", 0], image=["22", 0], strength=0.5),
        "21": node("ControlNetLoader", control_net_name="canny.pth"),
        "22": node("LoadImage", image="edges.png"),
    }
    controlled = changed(changed(controlled, "3", positive=["20", 0]), "5", batch_size=3)
    request, model, notes = core_nodes.request_of(controlled, tmp_path)
    assert (request.count, model) == (3, "sd/v1-5.safetensors")
    assert (request.controls[0].weight, request.embeddings) == (0.5, (str(tmp_path / "easy.pt"),))
    assert [note.partition(":")[0] for note in notes] == ["weights in the prompt"]
    request, _, notes = core_nodes.request_of(handed_over(), tmp_path)
    assert request.refiner is not None
    assert (request.refiner.model, notes) == (str(tmp_path / "refiner.safetensors"), [])
    with pytest.raises(ReverieError, match=r"ControlNet: 'canny\.pth'"):
        core_nodes.request_of(controlled)
    with pytest.raises(ReverieError, match="sampler euler"):
        core_nodes.request_of(handed_over(sampler_name="euler"), tmp_path)
    preview = changed(handed_over(), "9", filename_prefix="a") | {"40": node("PreviewImage", images=["41", 0])}
    with pytest.raises(ReverieError, match="one picture or batch"):
        core_nodes.request_of(preview, tmp_path)
