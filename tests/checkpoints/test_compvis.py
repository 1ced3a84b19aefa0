"""Do our tables name exactly the tensors of the official files, and do diffusers' converters agree on every value?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig as OracleConfig
from transformers import CLIPTextModelWithProjection as Oracle
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from reverie.checkpoints import compvis
from reverie.checkpoints.compvis import POINTWISE, TRANSPOSED, Place, ema_name, text_tower_name, to_single_file
from reverie.checkpoints.configs import write_autoencoder, write_unet, write_vision
from reverie.checkpoints.families import FAMILIES, FilePart
from reverie.checkpoints.single import Networks

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs

# SHA-256 of the sorted lines "name [shape]" of the published files' parts, names without prefix, from the lists in
# arenasys/stable-diffusion-webui-model-toolkit at e19dd46, folder components. Left out of the towers are what no
# network of ours has: position_ids, logit_scale, and SD 2's last layer and projection.
UNET_LISTS = {
    "sd15": "0a32647aed4bb212",
    "sd15-inpainting": "f32853fdaf221a0f",
    "sd2": "ddc5d94a25ab77b2",
    "sd21-v": "ddc5d94a25ab77b2",
    "sd2-inpainting": "8f1ca420f4f8951d",
    "sdxl": "8d7b1da7059706a0",
    "sdxl-refiner": "56e3de1cb0ca7a5b",
}
AVERAGES_LIST, AUTOENCODER_LIST = "3cf56774e0c01637", "240432d782157824"
TOWER_LISTS = {
    ("sd15", 0): "CLIP-L",
    ("sd2", 0): "4ce5613b86ab4fe7",
    ("sdxl", 0): "CLIP-L",
    ("sdxl", 1): "d909c2c593d27531",
    ("sdxl-refiner", 0): "d909c2c593d27531",
}
# What diffusers takes our lists for, which it tells by their names and shapes as well.
DIFFUSERS_KINDS = {
    "sd15": "v1",
    "sd15-inpainting": "inpainting",
    "sd2": "v2",
    "sd21-v": "v2",
    "sd2-inpainting": "inpainting_v2",
    "sd2-x4-upscaler": "upscale",
    "sdxl": "xl_base",
    "sdxl-inpainting": "xl_inpaint",
    "sdxl-refiner": "xl_refiner",
}
# The others share one.
STRUCTURES = ["sd15", "sd15-inpainting", "sd2", "sdxl", "sdxl-inpainting", "sdxl-refiner"]
STRUCTURES += [
    "sd15-variations",
    "sd21-unclip-l",
    "sd2-x4-upscaler",
    "bk-sdm-base",
    "bk-sdm-tiny",
    "sdxs",
    "sdxs-0.9",
    "ssd-1b",
    "koala-700m",
]


def on_meta(part: FilePart) -> dict[str, Tensor]:
    state = part.blueprint().state_dict()
    return to_single_file(state, part.places(state))


def digest(names: Iterable[tuple[str, Tensor]]) -> str:
    lines = sorted(f"{name} [{','.join(map(str, tensor.shape))}]" for name, tensor in names)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def bare(state: dict[str, Tensor], prefix: str) -> list[tuple[str, Tensor]]:
    assert all(name.startswith(prefix) for name in state)
    return [(name.removeprefix(prefix), tensor) for name, tensor in state.items()]


@pytest.mark.parametrize("name", UNET_LISTS)
def test_unets_of_the_official_files(name: str) -> None:
    assert digest(bare(on_meta(FAMILIES[name].unet_part()), "model.diffusion_model.")) == UNET_LISTS[name]


@pytest.mark.parametrize(("name", "width"), [("sd21-unclip-l", 768), ("sd21-unclip-h", 1024)])
def test_unclip_is_sd21_with_an_embedding_of_pictures(name: str, width: int) -> None:
    """As generative-models' v2-1-stable-unclip-*-inference.yaml says: adm_in_channels 1536 and 2048."""
    plain, wide = (set(bare(on_meta(FAMILIES[one].unet_part()), "model.diffusion_model.")) for one in ("sd21-v", name))
    shapes = {name: tuple(tensor.shape) for name, tensor in wide if name not in {name for name, _ in plain}}
    assert shapes == {
        "label_emb.0.0.weight": (1280, 2 * width),
        "label_emb.0.0.bias": (1280,),
        "label_emb.0.2.weight": (1280, 1280),
        "label_emb.0.2.bias": (1280,),
    }


@pytest.mark.parametrize("name", ["sd15-variations", "sd21-unclip-h"])
def test_vision_towers_are_transformers_ones(name: str) -> None:
    vision = FAMILIES[name].vision
    assert vision is not None
    config = CLIPVisionConfig(**write_vision(vision.config, vision.projection_dim))
    with torch.device("meta"):
        theirs = CLIPVisionModelWithProjection(config)
    ours = vision.part().blueprint().state_dict()
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in theirs.state_dict().items()}


def test_running_averages_of_the_official_files() -> None:
    state = {ema_name(name): tensor for name, tensor in on_meta(FAMILIES["sd15"].unet_part()).items()}
    assert digest(bare(state, "model_ema.diffusion_model")) == AVERAGES_LIST


@pytest.mark.parametrize("name", ["sd15", "sd21-v", "sdxl"])
def test_autoencoders_of_the_official_files(name: str) -> None:
    assert digest(bare(on_meta(FAMILIES[name].autoencoder_part()), "first_stage_model.")) == AUTOENCODER_LIST


@pytest.mark.parametrize(("name", "index"), TOWER_LISTS)
def test_text_encoders_of_the_official_files(name: str, index: int) -> None:
    tower = FAMILIES[name].towers[index]
    state = on_meta(tower.part())
    if TOWER_LISTS[name, index] == "CLIP-L":
        names = {name.removeprefix(f"{tower.prefix}text_model.") for name in state}
        assert names == clip_l_names()
    else:
        assert digest(bare(state, tower.prefix)) == TOWER_LISTS[name, index]


def clip_l_names() -> set[str]:
    """List OpenAI's ViT-L/14 text tower by its structure in transformers."""
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]
    parts += ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    layers = {f"encoder.layers.{i}.{part}.{leaf}" for i in range(12) for part in parts for leaf in ("weight", "bias")}
    embeddings = {f"embeddings.{kind}_embedding.weight" for kind in ("token", "position")}
    return layers | embeddings | {"final_layer_norm.weight", "final_layer_norm.bias"}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_tensor_has_a_place_of_its_own(name: str) -> None:
    """A bijection: no two tensors share a place, nor do two running averages, whose names lose their dots."""
    places: list[Place] = []
    for part in FAMILIES[name].parts():
        table = part.places(part.blueprint().state_dict())
        places += table.values()
    assert len({(place.name, place.third) for place in places}) == len(places)
    whole = [place.name for place in places if place.third is None]
    thirds = [place.name for place in places if place.third is not None]
    assert len(thirds) == 3 * len(set(thirds))
    assert not set(whole) & set(thirds)
    names = set(whole + thirds)
    assert len({ema_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", DIFFUSERS_KINDS)
def test_diffusers_takes_it_for_the_same(name: str) -> None:
    state: dict[str, Tensor] = {}
    for part in FAMILIES[name].parts():
        state |= on_meta(part)
    assert infer_diffusers_model_type(state) == DIFFUSERS_KINDS[name]


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_laid_out_is_read_back(name: str, tiny_networks: Callable[[str], Networks]) -> None:
    networks = tiny_networks(name)
    single = networks.tensors()
    modules: list[nn.Module] = [networks.unet, networks.autoencoder, *networks.text_encoders]
    modules += filter(None, [networks.image_encoder])
    for part, module in zip(networks.family.parts(), modules, strict=True):
        state = module.state_dict()
        for ours, place in part.places(state).items():
            tensor = single[place.name]
            assert place.read(tensor).equal(state[ours])
            assert place.shape(tuple(tensor.shape)) == tuple(state[ours].shape)
            assert place.read(tensor).untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr(), "a copy"


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("name", STRUCTURES)
def test_unet_and_autoencoder_as_diffusers_reads_them(name: str, tiny_networks: Callable[[str], Networks]) -> None:
    networks = tiny_networks(name)
    single, unet, autoencoder = networks.tensors(), networks.unet, networks.autoencoder
    assert_same(unet.state_dict(), convert_ldm_unet_checkpoint(single, write_unet(unet.config)))
    assert_same(
        autoencoder.state_dict(), convert_ldm_vae_checkpoint(dict(single), write_autoencoder(autoencoder.config))
    )


@pytest.mark.parametrize("name", ["sd2", "sdxl", "sdxl-refiner"])
def test_open_clip_as_diffusers_reads_it(name: str, tiny_networks: Callable[[str], Networks]) -> None:
    networks = tiny_networks(name)
    tower, prefix = networks.text_encoders[-1], networks.family.towers[-1].prefix
    oracle = Oracle(OracleConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
    theirs = convert_open_clip_checkpoint(oracle, networks.tensors(), prefix)
    assert_same(tower.state_dict(), {text_tower_name(name): tensor for name, tensor in theirs.items()})


def test_forms() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert Place("x", form=TRANSPOSED).read(x).shape == (3, 2)
    assert Place("x", form=POINTWISE).read(x).equal(x), "newer programs write the attention's weights as matrices"
    assert Place("x", form=POINTWISE).read(x[:, :, None, None]).equal(x)
    with pytest.raises(KeyError):
        compvis.places(["stranger.weight"], {"known": Place("known")}, "")
