"""Do IP-Adapters show pictures as diffusers' do, where and when they are told to?"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from reverie.adapters.ip_adapter import bind_image_prompts, cross_attentions, load_image_prompts, load_ip_adapter
from reverie.checkpoints.clip_files import load_vision
from reverie.cli.ask import parse_ip_adapter
from reverie.errors import RequestWarning, ReverieError
from reverie.models.ip_adapter import (
    ImageProjection,
    IPAdapter,
    PatchProjection,
    Projection,
    Resampler,
    WholeProjection,
)
from reverie.models.unet import UNet, UNetConfig
from reverie.pipeline import Pipeline, load
from reverie.requests.parts import IPAdapterInput
from reverie.runtime import is_packed, pack
from reverie.runtime.offload import OFFLOADS, Offloader

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)) for seed in range(2)
]
SPACE, HIDDEN, SEED = 10, 16, 7
MAKE: dict[str, Callable[[int], Projection]] = {
    "plain": lambda dim: ImageProjection(SPACE, 4, dim),
    "full": lambda dim: PatchProjection(HIDDEN, HIDDEN, dim),
    "plus": lambda dim: Resampler(HIDDEN, 5, dim, width=8, inner=128, hidden=32, depth=4),
}


def adapter_for(system: Pipeline, kind: str) -> IPAdapter:
    """Make an adapter of random weights for a system."""
    dim = system.unet.config.cross_attention_dim
    torch.manual_seed(1)
    adapter = IPAdapter(MAKE[kind](dim), dim, [one.to_q.out_features for one, _ in cross_attentions(system.unet)])
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return adapter


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny vision tower as the authors' repository has it; adapters are written beside it."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    config.projection_dim = SPACE
    tower = CLIPVisionModelWithProjection(config).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tower.save_pretrained(folder := tmp_path_factory.mktemp("models") / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def files(tower: Path, tiny: Pipeline, tiny_xl: Pipeline) -> dict[str, Path]:
    """Write adapters of each kind for a system: one as a pickle, in which the tables are nested."""
    written = {}
    for kind, system in {"plain": tiny, "full": tiny, "plus": tiny_xl}.items():
        state = {name: tensor.detach() for name, tensor in adapter_for(system, kind).state_dict().items()}
        if kind == "full":
            nested = {part: _below(f"{part}.", state) for part in ("image_proj", "ip_adapter")}
            torch.save(nested, file := tower.parent / f"{kind}.bin")
        else:
            save_file(state, file := tower.parent / f"{kind}.safetensors")
        written[kind] = file
    return written


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def oracle(system: Pipeline, file: Path, folder: Path) -> DiffusionPipeline:
    """Give diffusers' pipeline with the adapter."""
    if not (folder / "model_index.json").exists():
        system.save(folder)
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name)
    pipeline.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", MAKE)
def test_the_network_sees_what_diffusers_sees(
    kind: str, files: dict[str, Path], tiny: Pipeline, tiny_xl: Pipeline, tmp_path: Path
) -> None:
    """Two pictures together, in rows with and without them."""
    system = tiny_xl if kind == "plus" else tiny
    pipeline = oracle(system, files[kind], tmp_path)
    pipeline.set_ip_adapter_scale(0.7)
    embeds = pipeline.prepare_ip_adapter_image_embeds([PICTURES], None, "cpu", 1, True)
    torch.manual_seed(2)
    x, t = torch.randn(2, 4, 4, 4), torch.full((2,), 501)
    said = replace(system.encode_prompt(["", "a bear"]), prompted=torch.tensor([0.0, 1.0]))
    added = {"image_embeds": embeds, "text_embeds": said.pooled, "time_ids": said.sizes}
    prompt = IPAdapterInput(model=str(files[kind]), images=PICTURES, weight=0.7)
    prompts = load_image_prompts(system, [prompt])
    with torch.no_grad():
        b = pipeline.unet(x, t, said.tokens, added_cond_kwargs=added).sample
        a = bind_image_prompts(system, prompts, system.network)(said)(x, t)
        plain = system.network(said)(x, t)
    assert (a - b).abs().max() < 1e-5
    assert (a - plain).abs().max() > 1e-2


def test_a_picture_by_a_layer_and_under_a_mask(files: dict[str, Path], tiny: Pipeline, tmp_path: Path) -> None:
    """The last of the four layers alone, on the left half."""
    pipeline = oracle(tiny, files["plain"], tmp_path)
    system = load(tmp_path, device="cpu")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_ip_adapter_scale({"up": {"block_1": [0.0, 0.9]}})
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    masks = {"ip_adapter_masks": IPAdapterMaskProcessor().preprocess(mask, height=32, width=32)}
    latents = torch.randn((1, 4, 4, 4), generator=torch.Generator("cpu").manual_seed(SEED))
    asked = {"latents": latents, "num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "np"}
    theirs = pipeline("a bear", ip_adapter_image=PICTURES[0], cross_attention_kwargs=masks, **asked).images[0]
    drawn = partial(system.text_to_image, "a bear", seed=SEED, steps=4, guidance=6.0, sampler="ddim", schedule="ddim")
    seen = {"model": str(files["plain"]), "images": [PICTURES[0]], "weight": 0.9, "layers": "3", "mask": mask}
    picture = drawn(ip_adapters=[seen])[0]
    ours, plain = (np.asarray(one, dtype=float) for one in (picture, drawn()[0]))
    assert np.abs(ours - theirs * 255).max() <= 1
    assert np.abs(ours - plain).max() > 5
    record = json.loads(picture.info["reverie"])["request"]
    assert record["ip_adapters"][0]["model"] == files["plain"].name
    assert files["plain"].name in record["sums"]
    assert record["ip_adapters"][0]["images"][0].keys() == {"name", "sha256"}


def test_it_acts_for_a_part_of_the_way(files: dict[str, Path], tiny: Pipeline) -> None:
    prompts = load_image_prompts(tiny, [IPAdapterInput(model=str(files["plain"]), images=PICTURES[:1], start=0.5)])
    said, x = tiny.encode_prompt(["a bear"]), torch.randn(1, 4, 4, 4)
    bound = bind_image_prompts(tiny, prompts, tiny.network)(said)
    with torch.no_grad():
        for t, acts in ((900.0, False), (100.0, True)):
            time = torch.full((1,), t)
            assert torch.equal(bound(x, time), tiny.network(said)(x, time)) is not acts
    assert bind_image_prompts(tiny, [], tiny.network) == tiny.network


def test_what_acts_on_no_step_is_noted(files: dict[str, Path], tiny: Pipeline) -> None:
    between = {"model": str(files["plain"]), "images": PICTURES[:1], "start": 0.5, "end": 0.5}
    drawn = partial(tiny.text_to_image, "a bear", seed=SEED, steps=2)
    with pytest.warns(RequestWarning, match="'plain.safetensors' acts on no step: none of the 2 noise levels is from"):
        seen = drawn(ip_adapters=[between])[0]
    assert seen.tobytes() == drawn()[0].tobytes()


def test_packed_networks_see_the_same(tower: Path, tiny: Pipeline) -> None:
    config = UNetConfig(
        block_out_channels=(256,),
        layers_per_block=1,
        transformer_depth=(1,),
        num_heads=(4,),
        cross_attention_dim=16,
    )
    torch.manual_seed(0)
    wide = replace(tiny, unet=UNet(config).eval())
    save_file(adapter_for(wide, "plain").state_dict(), file := tower.parent / "wide.safetensors")
    prompts = load_image_prompts(wide, [IPAdapterInput(model=str(file), images=PICTURES[:1])])
    said, x, t = tiny.encode_prompt(["a bear"]), torch.randn(1, 4, 4, 4), torch.full((1,), 500.0)
    with torch.no_grad():
        plain = bind_image_prompts(wide, prompts, wide.network)(said)(x, t)
        assert is_packed(pack(wide.unet))
        packed = bind_image_prompts(wide, prompts, wide.network)(said)(x, t)
        assert (packed - plain).abs().max() < 1e-5
        assert (packed - wide.network(said)(x, t)).abs().max() > 1e-3


def test_offloaded_networks_see_the_same(files: dict[str, Path], tiny: Pipeline) -> None:
    kept, offloader = copy.deepcopy(tiny), Offloader(torch.device("cpu"), OFFLOADS["blocks"])
    offloader.take(*kept.text_encoders, kept.unet, kept.autoencoder)
    asked = {"ip_adapters": [{"model": str(files["plain"]), "images": PICTURES[:1]}], "seed": SEED, "steps": 2}
    ours, plain = (system.text_to_image("a bear", perturbed_guidance=3.0, **asked)[0] for system in (kept, tiny))
    assert ours.tobytes() == plain.tobytes()


def test_a_whole_projection_mixes_all_patches_and_is_read_from_its_file(tower: Path, tiny: Pipeline) -> None:
    project = WholeProjection(HIDDEN, 5, 3, 16, narrow=2, hidden=(8, 6))
    adapter = IPAdapter(project, 16, [one.to_q.out_features for one, _ in cross_attentions(tiny.unet)])
    save_file(adapter.state_dict(), file := tower.parent / "whole.safetensors")
    seen, state = torch.randn(2, 5, HIDDEN), load_ip_adapter(file).image_proj.state_dict()
    rows = torch.stack([torch.cat([state["narrow.weight"] @ patch for patch in picture]) for picture in seen])
    rows = rows + state["narrow.bias"].repeat(5)
    for layer in ("mix.0", "mix.1"):
        rows = torch.nn.functional.gelu(rows @ state[f"{layer}.weight"].mT + state[f"{layer}.bias"])
    tokens = (rows @ state["out.weight"].mT + state["out.bias"]).view(2, 3, 16)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(load_ip_adapter(file)(seen), adapter.keys_values(normed))
    shown = load_image_prompts(tiny, [IPAdapterInput(model=str(file), images=PICTURES)])
    assert shown[0].keys_values[0][0].shape[:2] == (2, 6)
    more = CLIPVisionConfig.from_pretrained(tower)
    more.image_size = 12
    CLIPVisionModelWithProjection(more).save_pretrained(large := tower.parent / "more-patches")
    with pytest.raises(ReverieError, match=r"a CLIP that gives it 80 numbers, and '.*' gives 160"):
        load_image_prompts(tiny, [IPAdapterInput(model=str(file), images=PICTURES, encoder=str(large))])


def test_a_flag_asks_for_several_pictures(files: dict[str, Path], tmp_path: Path) -> None:
    for index, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{index}.png")
    seen = ",".join(f"image={tmp_path / f'{index}.png'}" for index in range(len(PICTURES)))
    asked = IPAdapterInput.of(parse_ip_adapter(f"model={files['plain']},{seen},weight=0.5,layers=3+6:0.5"))
    assert [one.size for one in asked.images] == [picture.size for picture in PICTURES]
    assert (asked.model, asked.weight, asked.layers) == (str(files["plain"]), 0.5, ((3, 1.0), (6, 0.5)))


def test_a_tower_alone_in_a_file_and_in_a_whole_clip(tower: Path, tmp_path: Path) -> None:
    (alone := tmp_path / "ViT.safetensors").write_bytes((tower / "model.safetensors").read_bytes())
    a, b = load_vision(alone), load_vision(tower)
    assert a.config.image_size == b.config.image_size == 8
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def test_what_does_not_fit_is_said(files: dict[str, Path], tower: Path, tiny_xl: Pipeline, tmp_path: Path) -> None:
    ask = partial(IPAdapterInput, images=PICTURES[:1])
    state = adapter_for(tiny_xl, "plain").state_dict()
    face = {name.replace("image_proj.proj.", "image_proj.proj.0."): tensor for name, tensor in state.items()}
    save_file(face, tmp_path / "face.safetensors")
    with pytest.raises(ReverieError, match=r"is an IP-Adapter FaceID, which sees faces by a network \(InsightFace's\)"):
        load_ip_adapter(tmp_path / "face.safetensors")
    with pytest.raises(ReverieError, match="is no IP-Adapter that is known here"):
        load_ip_adapter(tower / "model.safetensors")
    with pytest.raises(ReverieError, match="is made for a U-Net with 4 attentions to a context of 16; the model has 8"):
        load_image_prompts(tiny_xl, [ask(model=str(files["plain"]))])
    with pytest.raises(ReverieError, match="layer 9 is not there; this model has layers 0 to 3"):
        load_image_prompts(tiny_xl, [ask(model=str(files["plus"]), layers="3+9")])
    save_file(state, alone := tmp_path / "alone.safetensors")
    with pytest.raises(ReverieError, match="a CLIP that gives it 10 numbers; give its vision tower as encoder"):
        load_image_prompts(tiny_xl, [ask(model=str(alone))])
    with pytest.raises(ReverieError, match="layers 'all' are not possible"):
        ask(model=str(alone), layers="all")
    with pytest.raises(ReverieError, match="layers name one twice"):
        ask(model=str(alone), layers="3+3:0.2")
