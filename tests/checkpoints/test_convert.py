"""Does a model go from a single file to a folder and back without losing a bit?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from reverie.checkpoints.convert import REST, convert
from reverie.checkpoints.families import FAMILIES
from reverie.checkpoints.load import load_folder
from reverie.checkpoints.single import Networks
from reverie.cli.app import run
from reverie.errors import ReverieError
from reverie.requests import references

Writer = Callable[[str], tuple[Path, Networks]]
STRUCTURES = [name for name in FAMILIES if not name.startswith("sdxl-v")]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert tensor.equal(b[name]), name


@pytest.mark.parametrize("name", STRUCTURES)
def test_there_and_back(name: str, single_file: Writer, tmp_path: Path) -> None:
    """In mixed precision, with all that a folder of diffusers has no place for: SD 2's last layer, odds and ends."""
    file, networks = single_file(name)
    tensors = {key: x.half() if key.startswith("model.") else x for key, x in read_tensors(file).items()}
    tensors |= {
        "cond_stage_model.model.transformer.resblocks.23.ln_1.weight": torch.rand(16),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(12)[None],
        "logit_scale": torch.tensor(4.6, dtype=torch.bfloat16),
    }
    save_file(tensors, file)
    config = networks.family
    convert(file, tmp_path / "folder", config=config)
    convert(tmp_path / "folder", tmp_path / "again.safetensors", config=config)
    assert_same(tensors, read_tensors(tmp_path / "again.safetensors"))
    folder = load_folder(tmp_path / "folder", dtype=None)
    assert folder.unet.conv_in.weight.dtype == torch.float16
    assert folder.autoencoder.dtype == torch.float32
    assert folder.unet.config == config.unet
    assert (tmp_path / "folder" / REST).is_file()
    convert(tmp_path / "again.safetensors", tmp_path / "folder2", config=config)
    for part in (tmp_path / "folder").rglob("*.safetensors"):
        assert_same(read_tensors(part), read_tensors(tmp_path / "folder2" / part.relative_to(tmp_path / "folder")))


def test_an_old_pickle_becomes_a_small_safe_file(single_file: Writer, tmp_path: Path) -> None:
    file, networks = single_file("sd15")
    tensors = read_tensors(file)
    left = {"model_ema.decay": torch.zeros(()), "first_stage_model.loss.x": torch.zeros(9), "betas": torch.zeros(5)}
    torch.save({"state_dict": tensors | left, "optimizer_states": [{}]}, tmp_path / "old.ckpt")
    convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors", config=networks.family, dtype=torch.float16)
    expected = {name: tensor.half() for name, tensor in (tensors | {"betas": left["betas"]}).items()}
    assert_same(expected, read_tensors(tmp_path / "new.safetensors"))


def test_refusals(single_file: Writer, tmp_path: Path) -> None:
    file, networks = single_file("sd15")
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"precious")
    folder = tmp_path / "folder"
    convert(file, folder, config=networks.family)
    refused = {
        (tmp_path / "nowhere", folder): "there is no such file or folder",
        (file, there): "is there already; give another name, or `force`",
        (file, folder): "is there already",
        (file, file): "is an input and would be written over",
        (file, tmp_path / "x.ckpt"): "ends in .safetensors for a single file",
        (folder, tmp_path / "other"): "is a folder already",
        (folder, tmp_path / "new.safetensors"): "has networks of its own",
    }
    for options in ({"ema": True}, {"config": "sd15"}):
        with pytest.raises(ReverieError, match="is a folder, which says what it is"):
            convert(folder, tmp_path / "new.safetensors", **options)
    for (source, target), told in refused.items():
        with pytest.raises(ReverieError, match=told):
            convert(source, target)
    assert there.read_bytes() == b"precious"
    convert(file, there, config=networks.family, overwrite=True)
    assert_same(read_tensors(file), read_tensors(there))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_was_written_over_leaves_nothing(single_file: Writer, tmp_path: Path) -> None:
    file, networks = single_file("sd15")
    tensors = read_tensors(file)
    save_file(tensors | {"logit_scale": torch.tensor(4.6)}, tmp_path / "more.safetensors")
    convert(tmp_path / "more.safetensors", tmp_path / "folder", config=networks.family)
    assert (tmp_path / "folder" / REST).is_file()
    convert(file, tmp_path / "folder", config=networks.family, overwrite=True)
    convert(tmp_path / "folder", tmp_path / "again.safetensors", config=networks.family)
    assert_same(tensors, read_tensors(tmp_path / "again.safetensors"))


def test_the_command(single_file: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, networks = single_file("sdxl")
    monkeypatch.setitem(FAMILIES, "tiny", networks.family)
    assert run(["convert", str(file), str(tmp_path / "folder"), "--config", "tiny", "--dtype", "bfloat16"]) == 0
    assert run(["convert", str(tmp_path / "folder"), str(tmp_path / "b.safetensors")]) == 0
    expected = {name: tensor.bfloat16() for name, tensor in read_tensors(file).items()}
    assert_same(expected, read_tensors(tmp_path / "b.safetensors"))
    assert run(["convert", str(file), str(tmp_path / "b.safetensors"), "--config", "tiny"]) == 2


def test_bundled_models_are_known_by_name(single_file: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text encoder, the tokenizer and the schedule are those of the model that a turbo model shares them with."""
    file, networks = single_file("sd15")
    convert(file, tmp_path / "whole", config=networks.family)
    shutil.copytree(tmp_path / "whole", tmp_path / "turbo", ignore=shutil.ignore_patterns("te*", "to*", "sch*"))
    monkeypatch.setitem(references.BUNDLED, references.TURBO_NAME, tmp_path / "turbo")
    monkeypatch.setitem(references.SHARED, tmp_path / "turbo", tmp_path / "whole")
    convert(references.TURBO_NAME, tmp_path / "file.safetensors", config=networks.family)
    assert_same(read_tensors(file), read_tensors(tmp_path / "file.safetensors"))


@pytest.mark.slow
def test_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of SD 1.5's size, float16, with random bits in it; the tokenizer is one of as many tokens."""
    from reverie.tokenizer import Tokenizer

    words = Tokenizer.train([], 514)
    vocab = dict(words.vocab) | {f"token{index}": index for index in range(514, 49408)}
    Tokenizer(vocab, []).save(tmp_path / "vocabulary")
    monkeypatch.setenv("REVERIE_TOKENIZER", str(tmp_path / "vocabulary"))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for part in FAMILIES["sd15"].parts():
        state = part.blueprint().state_dict()
        table = part.places(state)
        for name, tensor in state.items():
            shape = (*tensor.shape, 1, 1) if table[name].form.shape((2, 2, 1, 1)) == (2, 2) else tensor.shape
            bits = torch.randint(-30000, 30000, shape, generator=generator, dtype=torch.int16)
            tensors[table[name].name] = bits.view(torch.float16)
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "b.safetensors")
    again = read_tensors(tmp_path / "b.safetensors")
    assert again.keys() == tensors.keys()
    assert all(tensor.view(torch.int16).equal(again[name].view(torch.int16)) for name, tensor in tensors.items())
