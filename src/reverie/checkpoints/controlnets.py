"""How is a ControlNet read? From a folder in diffusers' layout, or from one file in diffusers' or lllyasviel's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from reverie.checkpoints import compvis
from reverie.checkpoints.compvis import Place, Table
from reverie.checkpoints.configs import UNET_BLOCKS, read_unet
from reverie.checkpoints.load import CPU, DIFFUSERS_STEM, blueprint
from reverie.checkpoints.weights import Source, find_weights, load_weights, open_source, read_json
from reverie.errors import ReverieError
from reverie.models.controlnet import CONTROLNETS, ControlNet, ControlNetConfig

PREFIX = "control_model."  # of lllyasviel's files; a few leave it out
MARK = "input_hint_block.0.weight"  # theirs alone
# What our network cannot do otherwise; "bgr" was one early release, "UNetMidBlock2D" is in the small ones for SDXL.
FIXED = {
    "_class_name": "ControlNetModel",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "controlnet_conditioning_channel_order": "rgb",
}


def load_controlnet(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    config: ControlNetConfig | None = None,
) -> ControlNet:
    """Read a ControlNet, in `dtype` (None: the file's own).

    What a single file is, is told from its names and shapes, unless `config` says. A file that holds a whole model
    beside it will do. Raises ReverieError where there is none, it is damaged, or it is of a kind that is not known.
    """
    path = Path(path)
    if path.is_dir():
        given = config or read_controlnet(read_json(path / "config.json"), str(path / "config.json"))
        module = blueprint(partial(ControlNet, given))
        files = find_weights(path, DIFFUSERS_STEM, dtype)
        load_weights(module, files, device=device, dtype=dtype)
        return module
    if not path.is_file():
        raise ReverieError(f"no ControlNet at '{path}'; give a folder in diffusers' layout or a file of weights")
    source = open_source(path)
    module, table = _recognised(source, path, [config] if config else list(CONTROLNETS.values()))
    state = {ours: place.read(source.tensor(place.name)) for ours, place in table.items()}
    module.load_state_dict({ours: tensor.to(device, dtype) for ours, tensor in state.items()}, assign=True)
    return module.eval()


def read_controlnet(raw: dict[str, Any], where: str) -> ControlNetConfig:
    """Translate diffusers' ControlNetModel config. `where` names the file in errors."""
    for key, expected in FIXED.items():
        if (given := raw.get(key, expected)) != expected:
            raise ReverieError(f"{where}: {key} is {given!r}, which is not supported; it should be {expected!r}")
    down = raw.get("down_block_types") or []
    up = [UNET_BLOCKS.get(block) for block in reversed(down)]
    unet = read_unet({"sample_size": 64, **raw, "up_block_types": up}, where)
    widths = tuple(raw.get("conditioning_embedding_out_channels") or (16, 32, 96, 256))
    return ControlNetConfig(unet, raw.get("conditioning_channels", 3), widths)


def places(config: ControlNetConfig, names: list[str], prefix: str = PREFIX) -> Table:
    """Give each of our tensors its place in a file of lllyasviel's (ControlNet: cldm/cldm.py)."""
    modules = {
        "conv_in": Place("input_blocks.0.0"),
        "time_embedding.linear_1": Place("time_embed.0"),
        "time_embedding.linear_2": Place("time_embed.2"),
        "add_embedding.linear_1": Place("label_emb.0.0"),
        "add_embedding.linear_2": Place("label_emb.0.2"),
        "controlnet_cond_embedding.conv_in": Place("input_hint_block.0"),
        "controlnet_mid_block": Place("middle_block_out.0"),
        **compvis.unet_down(config.unet),
    }
    blocks = 2 * (len(config.hint_widths) - 1)
    for index in range(blocks):  # every other module there is an activation
        modules[f"controlnet_cond_embedding.blocks.{index}"] = Place(f"input_hint_block.{2 * index + 2}")
    modules["controlnet_cond_embedding.conv_out"] = Place(f"input_hint_block.{2 * blocks + 2}")
    for index in range(len(config.unet.block_out_channels) * (config.unet.layers_per_block + 1)):
        modules[f"controlnet_down_blocks.{index}"] = Place(f"zero_convs.{index}.0")
    return compvis.places(names, modules, prefix)


def _recognised(source: Source, path: Path, configs: list[ControlNetConfig]) -> tuple[ControlNet, Table]:
    """Find the config whose names and shapes are all in a file, and where. Raises ReverieError where none is."""
    names = set(source.names())
    for config in configs:
        module = blueprint(partial(ControlNet, config))
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        table = {name: Place(name) for name in shapes}
        for prefix in (PREFIX, ""):
            if prefix + MARK in names:
                table = places(config, list(shapes), prefix)
        stored = [(shapes[ours], place) for ours, place in table.items()]
        if all(place.name in names and place.shape(source.shape(place.name)) == shape for shape, place in stored):
            return module, table
    raise ReverieError(
        f"'{path}' is not a ControlNet that is known here, whole and undamaged; give one for {', '.join(CONTROLNETS)}, "
        "in diffusers' layout or lllyasviel's"
    )
