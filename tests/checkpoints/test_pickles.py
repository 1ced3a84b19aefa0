"""Are torch's files read as torch reads them, with what trainers leave beside the weights left out?"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(6, 8, generator=generator)
    return {
        "float": drawn,
        "half": drawn.half(),
        "bfloat": drawn.bfloat16(),
        "double": drawn.double(),
        "turned": drawn.T,
        "part": drawn[1:5:2, 2:],
        "whole": torch.arange(7),
        "short": torch.arange(5, dtype=torch.int16),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "truth": torch.tensor([True, False, True]),
        "alpha": torch.tensor(4.0),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(drawn[0].clone()),
    }


def assert_read(path: Path, wanted: dict[str, torch.Tensor]) -> None:
    source = open_source(path)
    assert set(source.names()) == set(wanted)
    for name, tensor in wanted.items():
        found = source.tensor(name)
        assert source.shape(name) == tuple(tensor.shape) == tuple(found.shape)
        assert source.dtype(name) == found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saved(tmp_path: Path, zipped: bool, protocol: int) -> None:
    torch.save(weights(), tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_read(tmp_path / "x.pt", weights())


def test_what_it_is_is_told_from_its_content(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert_read(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    save_file({"a": torch.ones(2)}, tmp_path / "x.ckpt", metadata={"format": "pt"})
    assert_read(tmp_path / "x.ckpt", {"a": torch.ones(2)})


def test_state_dict_of_a_module(tmp_path: Path) -> None:
    """It is an OrderedDict with a state of its own, `_metadata`, and ties weights by sharing their storage."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[1].weight = module[0].weight
    torch.save(module.state_dict(), tmp_path / "x.pt")
    assert_read(tmp_path / "x.pt", dict(module.state_dict()))


@pytest.fixture
def lightning() -> Iterator[type]:
    """Let a class be named as Lightning's callback is, while files are written."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    made = type("ModelCheckpoint", (), {"__module__": name})
    parents = [".".join(name.split(".")[:depth]) for depth in (1, 2, 3)]
    for parent in parents:
        sys.modules[parent] = types.ModuleType(parent)
    sys.modules[name].ModelCheckpoint = made  # type: ignore[attr-defined]
    yield made
    for parent in parents:
        del sys.modules[parent]


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_checkpoint(tmp_path: Path, lightning: type, zipped: bool) -> None:
    """As CompVis' v1 files are: the callback's class is a key, its score a numpy number, an optimizer comes along."""
    callback = lightning()
    callback.best = {"path": "a/b.ckpt"}
    checkpoint = {
        "epoch": 840,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(weights()),
        "callbacks": {lightning: {"best_model_score": np.float32(0.5), "held": callback, "dtype": np.dtype("f4")}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "seen": {1, 2}, "big": 1 << 70, "nothing": None}],
    }
    torch.save(checkpoint, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    del sys.modules["pytorch_lightning.callbacks.model_checkpoint"]
    try:
        assert_read(tmp_path / "x.ckpt", weights())
    finally:
        sys.modules["pytorch_lightning.callbacks.model_checkpoint"] = types.ModuleType("back")


def test_textual_inversion_of_a1111(tmp_path: Path) -> None:
    vectors = torch.randn(2, 768)
    embedding = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "bear", "step": 100}
    torch.save(embedding, tmp_path / "bear.pt")
    assert_read(tmp_path / "bear.pt", {"string_to_param.*": vectors})


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    open_source(tmp_path / "x.pt").tensor("a").add_(1)
    assert (tmp_path / "x.pt").read_bytes() == before


def test_tensors_outlive_their_source_and_share_maps(tmp_path: Path) -> None:
    """Each map holds a file handle: a thousand tensors must not take a thousand."""
    wanted = {f"{index}": torch.full((1000,), float(index)) for index in range(1500)}
    save_file(wanted, tmp_path / "x.safetensors")
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.exists() else 0
    source = open_source(tmp_path / "x.safetensors")
    found = {name: source.tensor(name) for name in source.names()}
    del source
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    if handles.exists():
        assert len(list(handles.iterdir())) < before + 70


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"git-lfs should fetch \(`git lfs pull`\)"),
        (b"<!doctype html><html>", "is a web page"),
        (b"MZ and more than sixteen bytes", "is no file of weights; reverie reads .safetensors"),
        (b"GGUF and more than sixteen bytes", "is damaged or cut short"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ReverieError, match=told):
        open_source(tmp_path / "x.ckpt")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=r"cannot read .*x\.ckpt: no such file"):
        open_source(tmp_path / "x.ckpt")
