"""Are quantised weights read as what they stand for: GGUF of two programs, and float8 with its scales?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from reverie.checkpoints.description import describe
from reverie.checkpoints.single import Networks, load_file, load_networks
from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError
from reverie.system import load

Writer = Callable[[str], tuple[Path, Networks]]
Q8, F16, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32


def q8(x: np.ndarray) -> np.ndarray:
    """Round as ggml's quantize_row_q8_0 does: blocks of 32 with a float16 scale of largest / 127 (ggml-quants.c)."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    whole = np.trunc(blocks * inverse + np.copysign(0.5, blocks))
    return (whole * scale.astype(np.float16).astype(np.float32)).reshape(x.shape)


def write_gguf(file: Path, tensors: dict[str, Tensor], architecture: str | None) -> dict[str, Tensor]:
    """Write as stable-diffusion.cpp does (no key-values, whole rows alone are quantised) or city96's tools.

    Sources: stable-diffusion.cpp 97d2990 model_loader.cpp tensor_should_be_converted; ComfyUI-GGUF tools/convert.py
    handle_tensors, which lays weights of which rows are no multiple of 256 out in such rows and keeps their shape.
    Returns what the file stands for.
    """
    writer = gguf.GGUFWriter(file, architecture or "")
    if architecture is None:
        writer.kv_data[0].clear()
    meant: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        data = tensor.float().numpy()
        if architecture and data.ndim > 1 and data.size % 256 == 0 and data.shape[-1] % 256:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(data.shape))
            data = data.reshape(-1, 256)
        fixed = data.ndim < 2 or name.endswith(".bias") or "embedding" in name or "time_embed" in name
        kind = F32 if fixed or data.shape[-1] % 32 else Q8
        meant[name] = tensor if kind == F32 else torch.from_numpy(q8(data)).view(tensor.shape)
        writer.add_tensor(name, data if kind == F32 else gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def test_gguf_of_stable_diffusion_cpp(single_file: Writer, tmp_path: Path) -> None:
    file, networks = single_file("sdxl")
    meant = write_gguf(tmp_path / "q8.gguf", read_tensors(file), None)
    source = open_source(tmp_path / "q8.gguf")
    assert set(source.names()) == meant.keys()
    for name, tensor in meant.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert (source.tensor(name) - tensor).abs().max() <= 1e-6 * tensor.abs().max()
    loaded = load_file(tmp_path / "q8.gguf", config=networks.family)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert loaded.unet.conv_in.weight.equal(source.tensor(name))


def test_gguf_of_comfyui_is_a_unet_alone(single_file: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, networks = single_file("sdxl")
    prefix = "model.diffusion_model."
    unet = {key.removeprefix(prefix): x for key, x in read_tensors(file).items() if key.startswith(prefix)}
    meant = write_gguf(tmp_path / "unet.gguf", {key: x + 1 for key, x in unet.items()}, "sdxl")
    monkeypatch.setattr("reverie.checkpoints.identify.FAMILIES", {"sdxl": networks.family})
    described = describe(tmp_path / "unet.gguf")
    assert (described.kind, described.title) == ("unet", "the U-Net of Stable Diffusion XL alone")
    assert described.missing == ("autoencoder (VAE)", "text encoder")
    assert any(note.startswith("GGUF in ") and "Q8_0" in note for note in described.notes)
    with pytest.raises(ReverieError, match=r"alone without .* and .*; give a whole model, and this as its unet"):
        load_file(tmp_path / "unet.gguf")
    system = load(file, device="cpu", unet=tmp_path / "unet.gguf", fast=False)
    assert system.name.startswith("sdxl + unet.gguf [")
    assert (system.unet.conv_out.weight - meant["out.2.weight"]).abs().max() < 1e-5
    other, _ = single_file("sd15")
    with pytest.raises(ReverieError, match="not known here; it reads single files of"):
        load(file, device="cpu", unet=other)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_simple_format(kind: str, tmp_path: Path) -> None:
    """As near as so many bits bring it: half a step of a block's range, with ggml's rounding at its ends."""
    x = torch.randn((4, 64), generator=torch.Generator().manual_seed(0))
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "sd1")
    found = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("x", gguf.quants.quantize(x.numpy(), found), raw_dtype=found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = open_source(tmp_path / "x.gguf").tensor("x")
    step = 2 * x.view(-1, 32).abs().amax(1) / 2 ** int(kind[1])
    assert ((read - x).view(-1, 32).abs().amax(1) <= 1.01 * step).all()
    assert not read.equal(x)


def test_damaged_gguf_ends_in_one_line(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {"x": torch.ones(4, 64)}, "sd1")
    data = (tmp_path / "x.gguf").read_bytes()
    for length in (4, 20, 60, len(data) - 64):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(ReverieError, match=r"cut.gguf is damaged") as raised:
            open_source(tmp_path / "cut.gguf").tensor("x")
        assert "\n" not in str(raised.value)


def test_scaled_float8(single_file: Writer) -> None:
    """ComfyUI 0.3.64 (ops.py): `scale_weight` beside `scaled_fp8`, or `weight_scale` with `comfy_quant`: multiplied."""
    file, networks = single_file("sd15")
    tensors, meant = dict(read_tensors(file)), dict[str, Tensor]()
    for name, tensor in read_tensors(file).items():
        if name.endswith(".weight") and tensor.ndim == 2:
            stem, scale = name.removesuffix("weight"), tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            meant[name] = tensors[name].float() * scale
            if name.startswith("model."):
                tensors |= {f"{stem}scale_weight": scale.view(1), f"{stem}scale_input": torch.ones(1)}
            else:
                format = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
                tensors |= {f"{stem}weight_scale": scale, f"{stem}comfy_quant": format}
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, file)
    loaded = load_networks(file, config=networks.family, dtype=torch.float32)
    for part, module in zip(networks.family.parts(), (loaded.unet, None, *loaded.text_encoders), strict=True):
        state = {} if module is None else module.state_dict()
        for ours, place in part.places(state).items():
            if place.name in meant:
                assert state[ours].equal(meant[place.name])
    assert len(meant) > 20
    assert "float8_e4m3fn" in describe_dtypes(file)


def describe_dtypes(file: Path) -> set[str]:
    source = open_source(file)
    return {str(source.dtype(name)).removeprefix("torch.") for name in source.names()}


def test_scales_a_row_and_what_else_there_is(tmp_path: Path) -> None:
    x = torch.randn(3, 8)
    rows = x.abs().amax(1, keepdim=True) / 448
    stored = {"x.weight": (x / rows).to(torch.float8_e4m3fn), "x.weight_scale": rows}
    save_file(stored, tmp_path / "rows.safetensors")
    source = open_source(tmp_path / "rows.safetensors")
    assert list(source.names()) == ["x.weight"]
    assert source.tensor("x.weight").equal(stored["x.weight"].float() * rows)
    mark = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    packed = {"x.weight": torch.zeros(3, 4, dtype=torch.uint8), "x.weight_scale": rows, "x.comfy_quant": mark}
    save_file(packed, tmp_path / "nvfp4.safetensors")
    with pytest.raises(ReverieError, match=r"'x.weight' is quantised as nvfp4; reverie reads float8 with a scale"):
        open_source(tmp_path / "nvfp4.safetensors").tensor("x.weight")
