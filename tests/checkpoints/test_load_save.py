"""Does a model come back from its folder as it was, mapped, converted, sharded, and never half?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reverie.checkpoints.load import (
    CLIPComponents,
    Components,
    load_autoencoder,
    load_clip,
    load_folder,
    load_text_encoder,
    load_unet,
)
from reverie.checkpoints.save import Precision, save_autoencoder, save_clip, save_folder, save_text_encoder, save_unet
from reverie.errors import ReverieError
from reverie.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TextTower
from reverie.pipeline import Pipeline
from reverie.sound.spectrogram import SMALL
from reverie.tokenizer import Tokenizer

HALF = Precision(torch.float16, variant="fp16")
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def assert_same(a: nn.Module, b: nn.Module, dtype: torch.dtype | None = None) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor if dtype is None else tensor.to(dtype).to(theirs[name].dtype), theirs[name]), name


def assert_same_components(a: Components, b: Components) -> None:
    assert a.schedule_config == b.schedule_config
    assert a.zero_empty == b.zero_empty
    assert [tokenizer.vocab for tokenizer in a.tokenizers] == [tokenizer.vocab for tokenizer in b.tokenizers]
    for ours, theirs in zip(a.text_encoders, b.text_encoders, strict=True):
        assert type(ours) is type(theirs)
        assert ours.config == theirs.config
        assert_same(ours, theirs)
    for part in ("unet", "autoencoder"):
        assert getattr(a, part).config == getattr(b, part).config
        assert_same(getattr(a, part), getattr(b, part))


@pytest.mark.parametrize("kind", ["tiny", "tiny_v", "tiny_xl"])
def test_round_trip(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    system = request.getfixturevalue(kind)
    save_folder(system, tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    assert_same_components(system, loaded)
    assert loaded.name == "model"
    assert not loaded.unet.training
    assert not any(tensor.is_meta for tensor in loaded.unet.state_dict().values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert not list((tmp_path / "model").glob(".*"))


def test_how_a_model_of_music_hears_is_kept(tiny: Pipeline, tmp_path: Path) -> None:
    save_folder(replace(tiny, spectrogram=replace(SMALL, power=0.5)), tmp_path / "model")
    assert load_folder(tmp_path / "model").spectrogram == replace(SMALL, power=0.5)
    save_folder(tiny, tmp_path / "model")
    assert load_folder(tmp_path / "model").spectrogram is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("[]", "is damaged: it should hold a JSON object"),
        ('{"mels": "many"}', "spectrogram.json describes no spectrogram: mels: Input should be a valid integer"),
        ('{"high": 0}', "spectrogram.json describes no spectrogram: .*bands from 0 to 0 Hz are not possible"),
    ],
)
def test_a_damaged_spectrogram_gets_one_line(tiny: Pipeline, tmp_path: Path, told: str, message: str) -> None:
    save_folder(tiny, tmp_path)
    (tmp_path / "spectrogram.json").write_text(told)
    with pytest.raises(ReverieError, match=message):
        load_folder(tmp_path)


def test_single_parts(tiny: Pipeline, tmp_path: Path) -> None:
    save_unet(tiny.unet, tmp_path / "u")
    save_autoencoder(tiny.autoencoder, tmp_path / "a")
    save_text_encoder(tiny.text_encoders[0], tmp_path / "t")
    assert_same(tiny.unet, load_unet(tmp_path / "u"))
    assert_same(tiny.autoencoder, load_autoencoder(tmp_path / "a"))
    assert_same(tiny.text_encoders[0], load_text_encoder(tmp_path / "t"))


def test_clip_round_trip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.length,
        eos_token_id=tokenizer.eos_id,
        projection_dim=24,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    clip = CLIP(CLIPConfig(text=text, vision=vision, projection_dim=24))
    save_clip(CLIPComponents(clip, tokenizer), tmp_path / "clip")
    loaded = load_clip(tmp_path / "clip")
    assert loaded.clip.config == clip.config
    assert_same(clip, loaded.clip)
    assert loaded.tokenizer(["a bear"]).equal(tokenizer(["a bear"]))


def test_half_precision_variant_beside_full(tiny: Pipeline, tmp_path: Path) -> None:
    save_folder(tiny, tmp_path)
    save_folder(tiny, tmp_path, HALF)
    names = {path.name for path in (tmp_path / "unet").iterdir()}
    assert names == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    }
    assert_same_components(tiny, load_folder(tmp_path))
    half = load_folder(tmp_path, dtype=torch.float16)
    assert half.unet.conv_in.weight.dtype == torch.float16
    assert_same(tiny.unet, half.unet, torch.float16)


def test_only_half_is_read_as_full(tiny: Pipeline, tmp_path: Path) -> None:
    save_folder(tiny, tmp_path, HALF)
    loaded = load_folder(tmp_path)
    assert {tensor.dtype for tensor in loaded.unet.state_dict().values()} == {torch.float32}
    assert_same(tiny.unet, loaded.unet, torch.float16)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(tiny: Pipeline, tmp_path: Path, variant: str | None) -> None:
    save_folder(tiny, tmp_path, Precision(variant=variant, shard_bytes=20_000))
    infix = f".{variant}" if variant else ""
    index = json.loads((tmp_path / f"unet/diffusion_pytorch_model.safetensors.index{infix}.json").read_text())
    shards = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"diffusion_pytorch_model{infix}-00001-of-{len(shards):05}.safetensors"
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tiny.unet.state_dict().values())
    assert_same_components(tiny, load_folder(tmp_path))
    shards[1].unlink()
    with pytest.raises(ReverieError, match=r"00002-of-\d+\.safetensors is missing, though .*index.* names it"):
        load_folder(tmp_path)


def test_saving_again_replaces_weights_and_nothing_else(tiny: Pipeline, tiny_v: Pipeline, tmp_path: Path) -> None:
    save_folder(tiny, tmp_path, Precision(shard_bytes=20_000))
    save_folder(tiny, tmp_path, HALF)
    mine = {"notes.txt", "model-card.md", "model.onnx", "model.py", "diffusion_pytorch_model.msgpack", "remodel.bin"}
    for name in mine:
        (tmp_path / "unet" / name).write_text("mine")
    (tmp_path / "model.safetensors").write_text("a single file beside the parts, mine too")
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json"):
        (tmp_path / "unet" / name).write_text("old")
    save_folder(tiny_v, tmp_path)
    names = {path.name for path in (tmp_path / "unet").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"} | mine
    assert (tmp_path / "model.safetensors").exists()
    assert_same_components(tiny_v, load_folder(tmp_path))


def test_saving_a_variant_again_leaves_other_variants(tiny: Pipeline, tmp_path: Path) -> None:
    save_unet(tiny.unet, tmp_path, Precision(variant="fp16", shard_bytes=20_000))
    save_unet(tiny.unet, tmp_path, Precision(variant="fp16_ema"))
    save_unet(tiny.unet, tmp_path, HALF)
    stem = "diffusion_pytorch_model"
    names = {"config.json", f"{stem}.fp16.safetensors", f"{stem}.fp16_ema.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_describes_the_weights_is_put_into_place_after_them(
    tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    rename = Path.replace

    def recorded(self: Path, target: Path) -> Path:
        order.append(target.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    save_folder(tiny, tmp_path, Precision(shard_bytes=20_000))
    assert order[-1] == "model_index.json"
    last = max(index for index, name in enumerate(order) if name.endswith(".safetensors"))
    assert all(index > last for index, name in enumerate(order) if name.endswith(".json"))


def test_saving_over_the_files_it_is_mapped_from(tiny: Pipeline, tmp_path: Path) -> None:
    save_folder(tiny, tmp_path)
    loaded = load_folder(tmp_path)
    save_folder(loaded, tmp_path)
    assert_same_components(tiny, loaded)
    assert_same_components(tiny, load_folder(tmp_path))


def test_a_failed_save_leaves_the_old_model(
    tiny: Pipeline, tiny_v: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder(tiny, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reverie.checkpoints.configs.write_schedule", full)
    with pytest.raises(ReverieError, match=r"^cannot write a model to '.*': the disk is full$"):
        save_folder(tiny_v, tmp_path)
    assert_same_components(tiny, load_folder(tmp_path))
    assert not list(tmp_path.glob(".saving-*"))


def test_unwritable_target(tiny: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReverieError, match=r"^cannot write a model to '.*file': file exists$"):
        save_folder(tiny, tmp_path / "file")


def to_pickle(folder: Path, **save: bool) -> Path:
    file = folder / "diffusion_pytorch_model.safetensors"
    pickled = file.with_suffix(".bin")
    torch.save(load_file(file), pickled, **save)
    file.unlink()
    return pickled


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_of_tensors(tiny: Pipeline, tmp_path: Path, zipped: bool) -> None:
    save_unet(tiny.unet, tmp_path)
    to_pickle(tmp_path, _use_new_zipfile_serialization=zipped)
    assert_same(tiny.unet, load_unet(tmp_path))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def test_pickle_of_code_is_refused(tiny: Pipeline, tmp_path: Path) -> None:
    save_unet(tiny.unet, tmp_path)
    pickled = to_pickle(tmp_path)
    torch.save({"conv_in.weight": Evil()}, pickled)
    with pytest.raises(ReverieError, match=r"bin wants to run '(posix|nt)\.system', which has no place among"):
        load_unet(tmp_path)
    torch.save([1, 2], pickled)
    with pytest.raises(ReverieError, match="holds no tensors that reverie can find"):
        load_unet(tmp_path)
    pickled.write_bytes(pickled.read_bytes()[:40])
    with pytest.raises(ReverieError, match="damaged or cut short"):
        load_unet(tmp_path)


def test_the_variant_that_is_asked_for(tiny: Pipeline, tmp_path: Path) -> None:
    save_unet(tiny.unet, tmp_path)
    edit(tmp_path / "diffusion_pytorch_model.safetensors", {"conv_in.bias": torch.full((8,), 7.0)})
    save_unet(tiny.unet, tmp_path, Precision(variant="non_ema"))
    assert_same(tiny.unet, load_unet(tmp_path, variant="non_ema"))
    assert load_unet(tmp_path, variant="bf16").conv_in.bias.tolist() == [7.0] * 8  # there is no such file


@pytest.fixture
def saved(tiny: Pipeline, tmp_path: Path) -> Path:
    save_folder(tiny, tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(ReverieError) as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(file: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()} | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def test_missing_and_unknown_keys(saved: Path) -> None:
    change = {"conv_in.weight": None, "conv_in.bias": None, "conv_out.bias": None, "extra": torch.zeros(1)}
    edit(saved / UNET_FILE, change)
    told = refusal(saved)
    assert told.startswith(str(saved / UNET_FILE))
    assert "'conv_in.weight' is missing (and 2 others), 'extra' is not known" in told


def test_wrong_shape(saved: Path) -> None:
    edit(saved / UNET_FILE, {"conv_in.bias": torch.zeros(3)})
    assert "'conv_in.bias' has shape (3,), the config asks for (8,)" in refusal(saved)


def test_truncated_file(saved: Path) -> None:
    for kept in (5, 100, -10):
        file = saved / UNET_FILE
        whole = file.read_bytes()
        file.write_bytes(whole[:kept])
        assert refusal(saved).startswith(f"{file} is damaged or cut short (")
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model_index.json", "cannot read {}: no such file or directory"),
        ("unet/config.json", "cannot read {}: no such file or directory"),
        ("scheduler/scheduler_config.json", "cannot read {}: no such file or directory"),
        (UNET_FILE, "no weights in {parent}; it should hold diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "no weights in {parent}; it should hold model.safetensors"),
    ],
)
def test_missing_file(saved: Path, file: str, told: str) -> None:
    path = saved / file
    path.unlink()
    assert refusal(saved) == told.format(path, parent=path.parent)


def test_missing_folder(saved: Path) -> None:
    (saved / "vae").rename(saved / "gone")
    assert refusal(saved) == f"'{saved}' holds no autoencoder (vae); give one as vae"


def test_damaged_json(saved: Path) -> None:
    (saved / "unet/config.json").write_text("{")
    assert refusal(saved).startswith(f"{saved / 'unet/config.json'} is damaged: ")
    (saved / "unet/config.json").write_text("[]")
    assert refusal(saved).endswith("it should hold a JSON object")


def test_other_pipelines(saved: Path) -> None:
    (saved / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "describes a FluxPipeline; reverie reads StableDiffusionPipeline, " in refusal(saved)


def test_old_names(tiny: Pipeline, tmp_path: Path) -> None:
    """Autoencoders written before diffusers 0.17, text towers with position_ids or without their prefix."""
    save_autoencoder(tiny.autoencoder, tmp_path / "a")
    file = tmp_path / "a/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor.clone() for key, tensor in tensors.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, file)
    assert_same(tiny.autoencoder, load_autoencoder(tmp_path / "a"))
    save_text_encoder(tiny.text_encoders[0], tmp_path / "t")
    file = tmp_path / "t/model.safetensors"
    bare = {key.removeprefix("text_model."): tensor.clone() for key, tensor in load_file(file).items()}
    save_file({**bare, "embeddings.position_ids": torch.arange(12)[None]}, file)
    assert_same(tiny.text_encoders[0], load_text_encoder(tmp_path / "t"))


def test_weights_of_their_own_dtype_stay_mapped(tiny: Pipeline, tmp_path: Path) -> None:
    save_unet(tiny.unet, tmp_path)
    load_unet(tmp_path)
    unet = load_unet(tmp_path)
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        assert str(tmp_path / "diffusion_pytorch_model.safetensors") in maps.read()
    with torch.no_grad():  # the map is private: writing to a weight does not write to the file
        unet.conv_in.weight.add_(1)
    assert_same(tiny.unet, load_unet(tmp_path))


def test_force_upcast_keeps_the_autoencoder_in_full_precision(tiny: Pipeline, tmp_path: Path) -> None:
    save_autoencoder(tiny.autoencoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "force_upcast": True}))
    assert load_autoencoder(tmp_path, dtype=torch.float16).dtype == torch.float32


# A child process loads text towers one after another and touches every weight.
PEAK = """
import sys, torch
from reverie.checkpoints.load import load_text_encoder

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024

folder, *pairs = sys.argv[1:]
for stored, wanted in zip(pairs[::2], pairs[1::2]):
    dtype = getattr(torch, wanted)
    load_text_encoder(folder + "/tiny", dtype=dtype)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # forget the peak so far
    tower = load_text_encoder(folder + "/" + stored, dtype=dtype)
    touched = [tensor.sum() for tensor in tower.state_dict().values()]
    weights = sum(tensor.nbytes for tensor in tower.state_dict().values())
    print(weights, resident("VmHWM") - before)
    del tower, touched
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory, tiny: Pipeline) -> Path:
    """Write a text tower of 50 million weights, in both precisions, and a tiny one."""
    folder = tmp_path_factory.mktemp("heavy")
    config = CLIPTextConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=8, vocab_size=1000
    )
    with torch.device("meta"):
        tower = TextTower(config)
    tower.to_empty(device="cpu")
    save_text_encoder(tower, folder / "float32")
    save_text_encoder(tower, folder / "float16", Precision(torch.float16))
    save_text_encoder(tiny.text_encoders[0], folder / "tiny")
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory through Linux's /proc")
def test_peak_memory_is_that_of_the_weights(heavy: Path) -> None:
    pairs = [("float32", "float32"), ("float16", "float32"), ("float32", "float16")]  # stored and wanted
    command = [sys.executable, "-c", PEAK, str(heavy), *(word for pair in pairs for word in pair)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is let go of goes back to the system
    child = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    for (_, wanted), line in zip(pairs, child.stdout.splitlines(), strict=True):
        weights, peak = (int(word) for word in line.split())
        assert weights > (200e6 if wanted == "float32" else 100e6)
        assert 0.9 * weights < peak < 1.2 * weights
