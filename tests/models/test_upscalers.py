"""Upscalers against spandrel 0.4.2's: golden values, from weights and a picture that are sines, in every layout."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reverie.checkpoints.identify import identify
from reverie.checkpoints.single import load_upscaler
from reverie.checkpoints.weights import open_source
from reverie.errors import ReverieError
from reverie.models.upscalers import (
    CompactConfig,
    RRDBConfig,
    RRDBNet,
    SRVGGNet,
    SwinIR,
    SwinIRConfig,
    Upscaler,
    recognise,
)
from reverie.models.window_upscalers import DAT, DATConfig

TINY = {"features": 8, "blocks": 2}
SWIN = {"width": 8, "depths": (2,), "heads": 2, "hidden": 16}
DUAL = {"width": 32, "depths": (2, 3), "heads": 4, "window": (2, 4), "hidden": 32}
Config = RRDBConfig | CompactConfig | SwinIRConfig | DATConfig
# Of what spandrel's networks give: mean, standard deviation, and the values at (0, 0, 0), (1, 7, 3) and (2, -1, -1);
# of one that keeps the size, at (1, 4, 3).
GOLDEN: dict[Config, tuple[float, ...]] = {
    RRDBConfig(**TINY): (0.094233, 0.780904, 1.033835, 0.260266, -0.840877),
    RRDBConfig(**TINY, unshuffle=2): (0.095933, 0.782373, 1.044552, 0.275067, -0.849201),
    RRDBConfig(**TINY, doublings=1): (0.167107, 0.709949, -0.696177, 0.477063, 0.831688),
    CompactConfig(features=8, layers=2): (0.501841, 0.88184, 1.268334, 0.500923, 0.555154),
    SwinIRConfig(**SWIN): (0.327386, 0.785394, 1.379205, 0.137107, -0.502563),
    SwinIRConfig(**SWIN, slim=True, scale=2): (0.672342, 0.599477, -0.107518, 1.334125, 0.731366),
    SwinIRConfig(**SWIN, upsampler="pixelshuffle", scale=3): (0.464565, 5.124637, 2.735895, 10.420744, -1.912906),
    SwinIRConfig(**SWIN, upsampler="pixelshuffledirect", scale=2): (0.35619, 0.832703, -0.817378, 0.42503, -0.30745),
    SwinIRConfig(**SWIN, upsampler="", scale=1, window=7): (0.501987, 0.377406, 0.457346, 0.988393, 0.020259),
    DATConfig(**DUAL): (0.360104, 0.809335, 1.403383, 0.1594, -0.513035),
    DATConfig(**DUAL, slim=True, scale=3): (0.770522, 5.2094, -4.834677, -8.804614, 5.784865),
    DATConfig(**DUAL, direct=True, scale=2): (0.495611, 0.732051, 1.44241, 0.964997, 1.320708),
}
KEPT = ("rpe_biases", "num_batches_tracked")  # what a DAT's files hold that is no weight
X = (torch.arange(3 * 5 * 6, dtype=torch.float64) * 0.9).sin().mul(0.5).add(0.5).float().reshape(1, 3, 5, 6)


def first_layout(name: str, doublings: int) -> str:
    """Give the name that a weight has in the first ESRGAN's files."""
    tops = {"conv_first": 0, "conv_hr": 3 * doublings + 2, "conv_last": 3 * doublings + 4}
    tops |= {f"conv_up{number}": 3 * number for number in range(1, doublings + 1)}
    part, rest = name.split(".", 1)
    if part in tops:
        return f"model.{tops[part]}.{rest}"
    name = name.replace("conv_body", "model.1.sub.2")
    return re.sub(r"body\.(\d)\.rdb(\d)\.conv(\d)", r"model.1.sub.\1.RDB\2.conv\3.0", name)


def second_layout(name: str) -> str:
    for ours, theirs in (("conv_body", "trunk_conv"), ("body.", "RRDB_trunk."), ("rdb", "RDB"), ("conv_up", "upconv")):
        name = name.replace(ours, theirs)
    return name.replace("conv_hr", "HRconv")


def make_network(config: Config) -> Upscaler:
    kinds = {RRDBConfig: RRDBNet, CompactConfig: SRVGGNet, SwinIRConfig: SwinIR, DATConfig: DAT}
    return kinds[type(config)](config)


def weights(config: Config) -> dict[str, Tensor]:
    """Fill a network with sines, in the order of its names in the layout that spandrel keeps."""
    network = make_network(config)
    doublings = config.doublings if isinstance(config, RRDBConfig) else 0
    order = {name: first_layout(name, doublings) if doublings else name for name in network.state_dict()}
    filled = {}
    for number, name in enumerate(sorted(order, key=order.__getitem__)):
        shape = network.state_dict()[name].shape
        if name.endswith(KEPT):
            filled[name] = network.state_dict()[name]
            continue
        sines = (torch.arange(shape.numel(), dtype=torch.float64) * 1.7 + number).sin()
        sines = sines.abs() + 0.5 if name.endswith("running_var") else sines / math.sqrt(shape.numel() // shape[0])
        filled[name] = sines.float().reshape(shape)
    return filled


@pytest.mark.parametrize("config", GOLDEN, ids=str)
@pytest.mark.parametrize("layout", ["first", "second", "today", "wrapped"])
def test_upscalers_give_what_spandrel_gives(config: Config, layout: str, tmp_path: Path) -> None:
    state: Mapping[str, Tensor] = weights(config)
    if isinstance(config, SwinIRConfig):  # whose files also hold what follows from sizes
        state = {**state, "layers.0.residual_group.blocks.1.attn_mask": torch.zeros(4, 64, 64)}
    if layout in ("first", "second") and isinstance(config, RRDBConfig):
        rename = {"first": lambda name: first_layout(name, config.doublings), "second": second_layout}[layout]
        state = {rename(name): tensor for name, tensor in state.items()}
    file = tmp_path / "upscaler.pth"
    torch.save({"params": {"other": torch.ones(1)}, "params_ema": state} if layout == "wrapped" else state, file)
    network = load_upscaler(file)
    assert network.config == config
    with torch.no_grad():
        y = network(X)
    assert y.shape == (1, 3, 5 * config.scale, 6 * config.scale)
    seen = (y.mean(), y.std(), y[0, 0, 0, 0], y[0, 1, min(7, y.shape[2] - 1), 3], y[0, 2, -1, -1])
    assert [value.item() for value in seen] == pytest.approx(GOLDEN[config], abs=2e-5)
    assert identify(open_source(file), file).title == "an upscaler (ESRGAN, Real-ESRGAN, SwinIR or DAT)"


def test_what_is_no_upscaler_is_told(tmp_path: Path) -> None:
    state = weights(CompactConfig(features=8, layers=1))
    for names, says in (({"body.1.weight": "body.1.x"}, "no upscaler that is read"), ({}, "1 channels")):
        kept = {names.get(name, name): tensor for name, tensor in state.items()}
        save_file(
            kept if names else weights(CompactConfig(channels=1, features=8, layers=1)), tmp_path / "x.safetensors"
        )
        with pytest.raises(ReverieError, match=says):
            load_upscaler(tmp_path / "x.safetensors")


LIGHT = DATConfig(width=60, depths=(18,), hidden=120, direct=True, slim=True)
OFFICIAL: dict[str, tuple[Config, float]] = {  # of the authors' models: millions of parameters, of papers and files
    "real-sr x4 medium": (SwinIRConfig(), 11.7),
    "real-sr x4 large": (SwinIRConfig(width=240, depths=(6,) * 9, heads=8, hidden=480, slim=True), 27.8),
    "classical x2": (SwinIRConfig(upsampler="pixelshuffle", scale=2), 11.8),
    "lightweight x2": (
        SwinIRConfig(width=60, depths=(6,) * 4, hidden=120, upsampler="pixelshuffledirect", scale=2),
        0.9,
    ),
    "DAT x4": (DATConfig(), 14.80),
    "DAT 2 x4": (DATConfig(hidden=360), 11.21),
    "DAT S x4": (DATConfig(hidden=360, window=(8, 16)), 11.21),
    "DAT light x4": (LIGHT, 0.573),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_transformers_are_told_by_their_shapes(name: str) -> None:
    config, millions = OFFICIAL[name]
    with torch.device("meta"):
        network = make_network(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    make = recognise(shapes)
    assert make is not None
    with torch.device("meta"):
        assert make().config == config
    assert sum(one.numel() for one in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.3, rel=0.005)


def test_small_pictures_are_filled_by_their_edge() -> None:
    network = SwinIR(SwinIRConfig(**SWIN, scale=2)).eval()
    with torch.no_grad():
        assert network(X[:, :, :2, :3]).shape == (1, 3, 4, 6)
