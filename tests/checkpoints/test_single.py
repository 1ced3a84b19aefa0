"""Does a single file of every family become the model it is, whatever else is in it, and is anything else named?"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.checkpoints.compvis import ema_name, to_single_file, unet_layout
from reverie.checkpoints.families import FAMILIES, Family
from reverie.checkpoints.identify import UNetShape, identify
from reverie.checkpoints.load import Components, load_folder
from reverie.checkpoints.save import save_autoencoder
from reverie.checkpoints.single import Networks, load_file, load_networks, load_vae, predicts_v
from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError
from reverie.system import load

Writer = Callable[[str], tuple[Path, Networks]]


class Names:
    """A source of names and shapes alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes = shapes
        self.metadata: dict[str, str] = {}

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def tensor(self, name: str) -> Tensor:
        return torch.zeros(self.shapes[name])


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def assert_same_networks(a: Networks, b: Networks | Components) -> None:
    assert_same(a.unet, b.unet)
    assert_same(a.autoencoder, b.autoencoder)
    for ours, theirs in zip(_encoders(a), _encoders(b), strict=True):
        assert type(ours) is type(theirs)
        assert_same(ours, theirs)
    if a.embedding_noise is not None:
        assert b.embedding_noise is not None
        assert all(getattr(a.embedding_noise, name).equal(getattr(b.embedding_noise, name)) for name in ("mean", "std"))


def _encoders(model: Networks | Components) -> list[nn.Module]:
    return [*model.text_encoders, *filter(None, [model.image_encoder])]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, single_file: Writer) -> None:
    file, networks = single_file(name)
    loaded = load_file(file, config=networks.family)
    assert_same_networks(networks, loaded)
    assert loaded.name == name
    assert loaded.schedule_config == networks.family.schedule
    assert loaded.zero_empty == networks.family.zero_empty
    assert [tokenizer.pad for tokenizer in loaded.tokenizers] == [tower.pad for tower in networks.family.towers]
    assert not loaded.unet.training


@pytest.mark.parametrize("name", FAMILIES)
def test_identified_among_all(name: str, tiny_family: Callable[[str], Family], single_file: Writer) -> None:
    families = [tiny_family(other) for other in FAMILIES]
    file, _ = single_file(name)
    contents = identify(open_source(file), file, families=families)
    assert contents.family is not None
    # SD 2 base and 768-v look alike; which it is shows when the U-Net is there.
    assert contents.doubtful == (name in ("sd2", "sd21-v"))
    assert contents.family.name == name.replace("sd21-v", "sd2").replace("unclip-h", "unclip-l")  # as wide here
    assert (contents.kind, contents.missing) == ("model", ())


@pytest.mark.parametrize("name", FAMILIES)
def test_full_size_is_told_by_its_shape(name: str) -> None:
    """And by its shape alone: families of one shape differ in their schedule, or in what they see pictures by."""
    family = FAMILIES[name]
    state = family.unet_part().blueprint().state_dict()
    laid = {key: tuple(tensor.shape) for key, tensor in to_single_file(state, family.unet_part().places(state)).items()}
    layout = unet_layout(laid)
    assert layout is not None
    assert UNetShape.read(Names(laid), layout) == UNetShape.of(family.unet)
    alike = [other for other in FAMILIES.values() if UNetShape.of(other.unet) == UNetShape.of(family.unet)]
    processes = [(other.schedule.prediction, other.schedule.zero_terminal_snr, other.vision) for other in alike]
    assert len(set(processes)) == len(processes)


def test_what_a_training_left_is_ignored(single_file: Writer) -> None:
    file, networks = single_file("sd15")
    tensors = read_tensors(file)
    left = {
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "logvar": torch.zeros(1000),
        "model_ema.decay": torch.zeros(()),
        "model_ema.num_updates": torch.zeros((), dtype=torch.int32),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(12)[None],
        "cond_stage_model.logit_scale": torch.zeros(()),
    }
    averages = {ema_name(key): value + 1 for key, value in tensors.items() if key.startswith("model.diffusion_model.")}
    save_file(tensors | left | averages, file)
    assert_same_networks(networks, load_file(file, config=networks.family))
    averaged_ones = load_networks(file, config=networks.family, ema=True)
    ours = networks.unet.state_dict()
    assert all(tensor.equal(ours[name] + 1) for name, tensor in averaged_ones.unet.state_dict().items())


def test_statistics_of_embeddings_lie_beside_the_file(single_file: Writer, tmp_path: Path) -> None:
    """Of unCLIP with CLIP-L, as Karlo publishes them; with CLIP-H there are none."""
    file, networks = single_file("sd21-unclip-l")
    mean, std = networks.tensors()["noise_augmentor.data_mean"], networks.tensors()["noise_augmentor.data_std"]
    plain = {name: x for name, x in read_tensors(file).items() if not name.startswith("noise_augmentor.")}
    save_file(plain, file)
    with pytest.raises(ReverieError, match=r"put ViT-L-14_stats\.th of Karlo beside it"):
        load_file(file, config=networks.family)
    torch.save((mean[0], std[0]), tmp_path / "ViT-L-14_stats.th")
    assert_same_networks(networks, load_file(file, config=networks.family))
    file, networks = single_file("sd21-unclip-h")
    save_file({name: x for name, x in read_tensors(file).items() if not name.startswith("noise_augmentor.")}, file)
    noise = load_file(file, config=networks.family).embedding_noise
    assert noise is not None
    assert (noise.mean.abs().max(), noise.std.min(), noise.std.max()) == (0, 1, 1)


def test_towers_without_their_prefix(single_file: Writer) -> None:
    """So newer versions of transformers name them."""
    file, networks = single_file("sd15")
    tensors = {name.replace(".text_model.", "."): tensor for name, tensor in read_tensors(file).items()}
    save_file(tensors, file)
    assert_same_networks(networks, load_file(file, config=networks.family))


@pytest.mark.parametrize("nested", [True, False])
def test_pickles(nested: bool, single_file: Writer, tmp_path: Path) -> None:
    file, networks = single_file("sd2")
    tensors = {name: tensor.half() for name, tensor in read_tensors(file).items()}
    ckpt = tmp_path / "old.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7} if nested else tensors, ckpt)
    loaded = load_file(ckpt, dtype=torch.float16, config=networks.family)
    assert loaded.unet.conv_in.weight.equal(networks.unet.conv_in.weight.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype, single_file: Writer) -> None:
    file, networks = single_file("sdxl")
    loaded = load_file(file, dtype=dtype, config=networks.family)
    assert {tensor.dtype for tensor in loaded.unet.state_dict().values()} == {dtype}
    assert loaded.text_encoders[1].text_projection.weight.dtype == dtype
    wanted = torch.float32 if dtype == torch.float16 else dtype  # it overflows in half precision
    assert loaded.autoencoder.dtype == wanted


def test_fused_weights_stay_mapped(single_file: Writer) -> None:
    file, networks = single_file("sd2")
    attention = load_file(file, config=networks.family).text_encoders[0].text_model.encoder.layers[0].self_attn
    q, k = attention.q_proj.weight, attention.k_proj.weight
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


def damaged(file: Path, change: Callable[[dict[str, Tensor]], object], family: Family) -> str:
    tensors = read_tensors(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ReverieError) as raised:
        load_file(file, config=family)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_does_not_fit_is_named(single_file: Writer) -> None:
    key = "model.diffusion_model.out.2.weight"
    file, networks = single_file("sd15")
    missing = damaged(file, lambda tensors: tensors.pop(key), networks.family)
    assert f"'{key}' is missing" in missing
    file, networks = single_file("sd15")
    extra = {"model.diffusion_model.input_blocks.99.0.weight": torch.zeros(1)}
    unknown = damaged(file, lambda tensors: tensors.update(extra), networks.family)
    assert "input_blocks.99.0.weight' is not known" in unknown
    file, networks = single_file("sd15")
    wrong = damaged(file, lambda tensors: tensors.update({key: torch.zeros(1, 2)}), networks.family)
    assert f"'{key}' has the shape (1, 2), which does not become (4, 8, 3, 3)" in wrong
    file, networks = single_file("sd15")
    whole = damaged(file, lambda tensors: tensors.update({key: tensors[key].to(torch.int8)}), networks.family)
    assert f"'{key}' holds whole numbers" in whole


OTHERS: dict[str, dict[str, tuple[int, ...]]] = {
    "is a LoRA; give it beside": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (8, 320, 1, 1)},
    "is a LoRA;": {"lora_unet_x.hada_w1_a": (4, 4)},
    "is a ControlNet; give it": {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)},
    "is an embedding (textual inversion); give it beside a model, among its embeddings": {"emb_params": (4, 768)},
    "is an embedding": {"<cat>": (768,)},
    "is an embedding (": {"string_to_param.*": (2, 1024)},
    "is a TAESD": {"encoder.layers.0.weight": (64, 3, 3, 3)},
    "is a TAESD (": {"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)},
    "is an autoencoder (VAE); give": {
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
    },
    "holds a U-Net of width 32 with 4 input channels": {"conv_in.weight": (32, 4, 3, 3), "conv_out.weight": (1,)},
    "Flux": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9, 3)},
    "holds a U-Net of width 320 with 5 input channels": {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 5, 3, 3)
    },
    "holds no model that reverie knows; it reads single files of sd15, sd15-lcm": {"layer4.weight": (7, 7)},
}


@pytest.mark.parametrize("told", OTHERS)
def test_what_is_no_model_is_named(told: str) -> None:
    with pytest.raises(ReverieError, match=re.escape(told)):
        identify(Names(OTHERS[told]), "file.safetensors").drawable("file.safetensors")


def test_unknown_config(single_file: Writer) -> None:
    file, _ = single_file("sd15")
    with pytest.raises(ReverieError, match="unknown config 'sd3'; choose from sd15, "):
        load_file(file, config="sd3")
    with pytest.raises(ReverieError, match=r"holds no running averages \(model_ema\)"):
        load_networks(file, config=FAMILIES["sd15"], ema=True)


def test_what_predicts_v() -> None:
    """At the last timestep, nearly pure noise: eps is nearly the input, v nearly minus the picture, here -3."""
    assert not predicts_v(lambda x, t, context: 0.998 * x)
    assert predicts_v(lambda x, t, context: 0.068 * x - 3)


def test_vae_files(tiny_networks: Callable[[str], Networks], tmp_path: Path) -> None:
    networks = tiny_networks("sdxl")
    autoencoder, config = networks.autoencoder, networks.autoencoder.config
    save_autoencoder(autoencoder, tmp_path / "vae")
    whole = {name: tensor.contiguous() for name, tensor in networks.tensors().items()}
    save_file(whole, tmp_path / "whole.safetensors")
    alone = {name.removeprefix("first_stage_model."): x for name, x in whole.items() if name.startswith("first_stage")}
    save_file(alone, tmp_path / "alone.safetensors")
    torch.save({"state_dict": alone | {"loss.logvar": torch.zeros(())}}, tmp_path / "alone.pt")
    files = ["vae", "vae/diffusion_pytorch_model.safetensors", "whole.safetensors", "alone.safetensors", "alone.pt"]
    for file in files:
        assert_same(autoencoder, load_vae(tmp_path / file, config=config))
    save_file({"emb_params": torch.zeros(1, 768)}, tmp_path / "embedding.safetensors")
    with pytest.raises(ReverieError, match=r"holds an embedding .*; give an autoencoder"):
        load_vae(tmp_path / "embedding.safetensors")


def test_load_takes_a_file_and_another_vae(
    single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, networks = single_file("sd15")
    monkeypatch.setitem(FAMILIES, "tiny", networks.family)
    system = load(file, device="cpu", config="tiny")
    assert re.fullmatch(r"sd15 \[[0-9a-f]{10}\]", system.name)
    assert_same_networks(networks, system)
    assert system.encode_prompt(["a bear"]).tokens.shape == (1, 12, 16)
    other = networks.autoencoder
    save_autoencoder(other, tmp_path / "vae")
    assert_same(other, load(file, device="cpu", config="tiny", vae=tmp_path / "vae").autoencoder)
    system.save(tmp_path / "folder")
    assert_same_networks(networks, load_folder(tmp_path / "folder"))
    with pytest.raises(ReverieError, match="config 'tiny' was given for the folder"):
        load(tmp_path / "folder", device="cpu", config="tiny")


def test_a_vae_completes_a_model_without_one(
    single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files do not say how latents are scaled: it is as the family's are, which the U-Net tells."""
    file, networks = single_file("sdxl")
    monkeypatch.setitem(FAMILIES, "tiny", networks.family)
    tensors = read_tensors(file)
    prefix = "first_stage_model."
    save_file({n: t for n, t in tensors.items() if not n.startswith(prefix)}, tmp_path / "bare.safetensors")
    save_file({n: t for n, t in tensors.items() if n.startswith(prefix)}, tmp_path / "vae.safetensors")
    bare, vae = tmp_path / "bare.safetensors", tmp_path / "vae.safetensors"
    assert_same_networks(networks, load(bare, device="cpu", config="tiny", vae=vae))
    load(file, device="cpu", config="tiny").save(tmp_path / "folder")
    (tmp_path / "whole").symlink_to(tmp_path / "folder")
    shutil.copytree(tmp_path / "folder", tmp_path / "alone", ignore=shutil.ignore_patterns("vae"))
    for given in (vae, tmp_path / "folder" / "vae", tmp_path / "whole"):
        loaded = load(tmp_path / "alone", device="cpu", vae=given)
        assert_same_networks(networks, loaded)
        assert loaded.autoencoder.config.scaling_factor == networks.autoencoder.config.scaling_factor != 0.18215
    with pytest.raises(ReverieError, match=r"holds no autoencoder \(vae\); give one as vae$"):
        load(tmp_path / "alone", device="cpu")


def test_a_model_is_named_by_its_weights_too(
    single_file: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another file of one name has another hash, and the same one has it anywhere."""
    file, networks = single_file("sd15")
    monkeypatch.setitem(FAMILIES, "tiny", networks.family)
    first = load(file, device="cpu", config="tiny")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere/sd15.safetensors"
    copy.write_bytes(file.read_bytes())
    monkeypatch.setenv("REVERIE_TOKENIZER", str(tmp_path / "tokenizer"))
    copy_name = load(copy, device="cpu", config="tiny").name
    save_file({name: tensor * 1.001 for name, tensor in read_tensors(file).items()}, file)
    changed = load(file, device="cpu", config="tiny")
    assert first.name == copy_name
    assert changed.name != first.name
    assert changed.name.partition(" [")[0] == "sd15"
    first.save(tmp_path / "folder")
    folder = load(tmp_path / "folder", device="cpu").name
    changed.save(tmp_path / "folder")
    assert load(tmp_path / "folder", device="cpu").name != folder
