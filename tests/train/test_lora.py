"""Is what an adapter was trained as what its file does to a model, to the bit, and does the file fit other programs?"""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from reverie.adapters.lora import apply, notes
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.train.distill import thin_student
from reverie.train.lora import KINDS, LoRASettings, install
from reverie.train.lora_files import save

EVERYWHERE = (
    "to_k",
    "to_out.0",
    "conv1",
    "conv_shortcut",
    "proj_in",
    "ff.net.0.proj",
    "time_emb_proj",
    "q_proj",
    "fc1",
)


def trained(system: Pipeline, settings: LoRASettings) -> list[tuple[str, nn.Module]]:
    """Install changes in the networks that have such layers, with the values of a training that went far."""
    towers = zip(
        ("text",) if len(system.text_encoders) == 1 else ("text_1", "text_2"), system.text_encoders, strict=True
    )
    torch.manual_seed(1)
    changes = []
    texts = towers if {"q_proj", "fc1"} & set(settings.layers) else ()
    for name, network in (("unet", system.unet), *texts):
        changes.append((name, install(network.requires_grad_(False), settings)))
        for parameter in changes[-1][1].parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return changes


@torch.no_grad()
def predicted(system: Pipeline) -> torch.Tensor:
    torch.manual_seed(2)
    network = system.network(system.encode_prompt(["a bear", ""]))
    return network(torch.randn(2, 4, 4, 4), torch.tensor([10, 500]))


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_does_what_was_trained(tiny: Pipeline, tiny_xl: Pipeline, tmp_path: Path, kind: str, xl: bool) -> None:
    model = tiny_xl if xl else tiny
    settings = LoRASettings(rank=3, alpha=1.0, conv_rank=2, layers=EVERYWHERE, kind=kind)
    system, file = deepcopy(model), tmp_path / "dog.safetensors"
    save(trained(system, settings), system, settings, file)
    assert notes(model, [(file, 1.0, 1.0)]) == []
    with apply(model, [(file, 1.0, 1.0)]):
        assert torch.equal(predicted(model), predicted(system))
    assert not torch.allclose(predicted(model), predicted(system))


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_starts_as_the_model_itself_and_all_of_it_learns(tiny: Pipeline, kind: str) -> None:
    system = deepcopy(tiny)
    changes = install(system.unet.requires_grad_(False), LoRASettings(rank=2, kind=kind, layers=EVERYWHERE))
    assert torch.allclose(predicted(system), predicted(tiny), atol=1e-6)
    learning = {id(parameter) for parameter in changes.parameters()}
    assert all(parameter.requires_grad == (id(parameter) in learning) for parameter in system.unet.parameters())
    for parameter in changes.parameters():
        parameter.data += 0.1
    system.unet(torch.randn(1, 4, 4, 4), torch.tensor([9]), torch.randn(1, 12, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in changes.parameters())


def test_the_keys_are_kohyas(tiny: Pipeline, tiny_xl: Pipeline, tmp_path: Path) -> None:
    settings, file = LoRASettings(rank=2, alpha=4.0), tmp_path / "dog.safetensors"
    save(trained(system := deepcopy(tiny), settings), system, settings, file)
    tensors = load_file(file)
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{unet}.lora_down.weight"].shape == (2, 8)
    assert tensors[f"{unet}.lora_up.weight"].shape == (8, 2)
    assert tensors[f"{unet}.alpha"].item() == 4.0
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight" in tensors
    blocks, layers = 4, 2  # of one transformer block down, one in the middle and two up, with two attentions each
    assert len(tensors) == 3 * (blocks * 2 * 4 + layers * 4)
    save(trained(system := deepcopy(tiny_xl), settings), system, settings, file)
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_up.weight" in load_file(file)
    assert "lora_te2_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight" in load_file(file)


def test_the_header_says_what_the_file_is(tiny: Pipeline, tmp_path: Path) -> None:
    settings = LoRASettings(rank=2, alpha=1.0, conv_rank=1, kind="dora")
    save(trained(system := deepcopy(tiny), settings), system, settings, tmp_path / "dog.safetensors")
    with safe_open(tmp_path / "dog.safetensors", "pt") as file:
        header = file.metadata()
    assert header["ss_network_module"] == "lycoris.kohya"
    assert header["ss_network_args"] == '{"conv_dim": 1, "conv_alpha": 0.5, "algo": "lora", "dora_wd": true}'
    assert header["ss_base_model_version"] == "sd_v1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.title"] == "dog"


def drawn_by_both(model: Pipeline, file: Path, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a picture with a LoRA, here and by diffusers' load_lora_weights, and one without it."""
    model.save(folder)
    kind = StableDiffusionPipeline if len(model.text_encoders) == 1 else StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    generator = torch.Generator().manual_seed(7)
    size = {"width": 32, "height": 32}
    theirs = pipeline("a bear", num_inference_steps=2, guidance_scale=5.0, generator=generator, **size).images[0]
    asked = {"prompt": "a bear", "seed": 7, "steps": 2, "guidance": 5.0, "sampler": "ddim", "schedule": "ddim", **size}
    (with_it,), (without,) = model.text_to_image(**asked, loras=[str(file)]), model.text_to_image(**asked)
    ours, plain, other = (np.asarray(picture).astype(int) for picture in (with_it, without, theirs))
    return ours, other, plain


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize(("layout", "kind"), [("kohya", "lora"), ("diffusers", "lora"), ("diffusers", "dora")])
def test_diffusers_opens_the_file(
    tiny: Pipeline, tiny_xl: Pipeline, tmp_path: Path, layout: str, kind: str, xl: bool
) -> None:
    """Oracle: diffusers 0.42.1 with peft 0.21.2.

    With transformers 5.23 it leaves out the attention of text encoders in kohya's files, as `to_q_lora`, and reads no
    magnitudes of text encoders.
    """
    model, file = (tiny_xl if xl else tiny), tmp_path / "dog.safetensors"
    unread = {"kohya": {"q_proj"}, "diffusers": {"q_proj", "fc1"} if kind == "dora" else set()}[layout]
    layers = tuple(end for end in EVERYWHERE if end not in unread)
    settings = LoRASettings(rank=3, alpha=1.0, layers=layers, kind=kind, layout=layout)
    save(trained(system := deepcopy(model), settings), system, settings, file)
    ours, theirs, plain = drawn_by_both(model, file, tmp_path / "base")
    assert abs(ours - theirs).max() <= 1
    assert abs(ours - plain).max() > 10


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.filterwarnings("ignore")
def test_diffusers_opens_a_distilled_students_file(tiny: Pipeline, tmp_path: Path) -> None:
    settings = LoRASettings(rank=2, layers=("to_q", "to_v"))
    student = thin_student(deepcopy(tiny.unet), settings)
    for parameter in student.learned.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    student.export(tiny, tmp_path / "turbo/export")
    ours, theirs, plain = drawn_by_both(tiny, tmp_path / "turbo/export/turbo.safetensors", tmp_path / "base")
    assert abs(ours - theirs).max() <= 1
    assert abs(ours - plain).max() > 1


def test_settings_that_fit_no_layer(tiny: Pipeline) -> None:
    with pytest.raises(ReverieError, match=r"no layer's name ends in to_z, o_q; choose other layers in \[lora\]"):
        install(deepcopy(tiny.unet), LoRASettings(rank=2, layers=("to_z", "o_q")))
    with pytest.raises(ReverieError, match=r"rank = 100000 in \[lora\] of the recipe is too much"):
        install(deepcopy(tiny.unet), LoRASettings(rank=100_000))
    with pytest.raises(ReverieError, match=r"unknown kind 'vera'; choose from lora, dora, loha, lokr"):
        LoRASettings(kind="vera")
    with pytest.raises(ReverieError, match=r"diffusers has no layout for kind = 'loha' in \[lora\]"):
        LoRASettings(kind="loha", layout="diffusers")
