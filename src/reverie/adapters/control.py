"""ControlNets: pictures that steer a drawing, several at once, each with a weight and a part of the way.

They are read from a folder in diffusers' layout, or from one file in diffusers' or lllyasviel's; Control-LoRAs, which
are changes of the U-Net that they steer, from Stability's files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.checkpoints import compvis
from reverie.checkpoints.compvis import Place, Table
from reverie.checkpoints.configs import UNET_BLOCKS, read_unet, write_unet
from reverie.checkpoints.load import CPU, DIFFUSERS_STEM
from reverie.checkpoints.save import save_part, write_tensors
from reverie.checkpoints.weights import Source, blueprint, find_weights, load_weights, open_source, read_json
from reverie.diffusion.denoiser import Network
from reverie.errors import ReverieError
from reverie.media.pictures import to_rgb
from reverie.models.controlnet import CONTROLNETS, ControlNet, ControlNetConfig
from reverie.models.unet import UNet
from reverie.requests.parts import CONTROL_KINDS
from reverie.system import Conditioning, StableDiffusion


@dataclass(frozen=True, eq=False)
class Control:
    """Steer by a picture that is already what the network was trained on: edges, depth, a pose.

    What the network answers is multiplied by `weight`. It is asked between `start` and `end`, fractions of the way from
    the last timestep (0) to the first (1). `kind` says to a union ControlNet what the picture is, by the names of
    CONTROL_KINDS. Raises ReverieError where start and end are not in order within [0, 1], and for a kind that the
    network does not know.
    """

    network: ControlNet
    picture: Image.Image
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    kind: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ReverieError(
                f"control from {self.start:g} to {self.end:g} is not possible; give 0 <= start <= end <= 1"
            )
        known = CONTROL_KINDS[: self.network.control.kinds]
        if known and self.kind not in known:
            raise ReverieError(
                f"this is a union ControlNet, for several kinds of pictures, and kind is {self.kind}; choose from "
                f"{', '.join(known)}"
            )
        if self.kind is not None and not known:
            raise ReverieError(f"this ControlNet is for one kind of pictures; leave out kind {self.kind}")

    def hint(self, height: int, width: int) -> Float[Tensor, "1 d h w"]:
        """Embed the picture, stretched to latents of a height and a width."""
        factor, weight = self.network.control.factor, self.network.conv_in.weight
        stretched = to_rgb(self.picture).resize((width * factor, height * factor), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(stretched, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        return self.network.embed_hint(pixels.to(weight.device, weight.dtype))


def bind_controls(system: StableDiffusion, controls: Sequence[Control]) -> Callable[[Conditioning], Network]:
    """Return what binds a conditioning as `system.network` does, to a U-Net that the controls steer.

    Their answers are summed. Raises ReverieError where a ControlNet is of another family than the model.
    """
    for control in controls:
        _check(system, control)
    if not controls:
        return system.network
    hint = cache(Control.hint)  # once for each size, not at each step

    def bind(conditioning: Conditioning) -> Network:
        extra = (conditioning.pooled, conditioning.sizes)

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            x, way = x.to(system.dtype), system.progress(t[0].item())
            active = [control for control in controls if control.weight and control.start <= way <= control.end]
            total: list[Tensor] | None = None
            for control in active:
                embedded = hint(control, *x.shape[2:]).expand(len(x), -1, -1, -1)
                # An inpainting U-Net's further channels are a mask and a masked picture, unknown to the control.
                latents = x[:, : control.network.config.in_channels]
                kind = None if control.kind is None else CONTROL_KINDS.index(control.kind)
                answer = control.network(latents, t, conditioning.tokens, embedded, *extra, kind=kind)
                if control.network.control.pooled and conditioning.prompted is not None:
                    answer = [residual * conditioning.prompted.to(x)[:, None, None, None] for residual in answer]
                total = _sum(total, [control.weight * residual for residual in answer])
            return system.unet(x, t, conditioning.tokens, *extra, residuals=total, guidance=conditioning.guidance)

        return predict

    return bind


def _sum(total: list[Tensor] | None, added: list[Tensor]) -> list[Tensor]:
    return added if total is None else [a + b for a, b in zip(total, added, strict=True)]


def _check(system: StableDiffusion, control: Control) -> None:
    theirs, ours = control.network.config, system.unet.config
    if (theirs.cross_attention_dim, theirs.block_out_channels) != (ours.cross_attention_dim, ours.block_out_channels):
        raise ReverieError(
            f"this ControlNet is made for a U-Net with levels of {theirs.block_out_channels} channels and a context of "
            f"{theirs.cross_attention_dim}; the model has {ours.block_out_channels} and {ours.cross_attention_dim}: "
            "give one of the same family"
        )


PREFIX = "control_model."  # of lllyasviel's files; a few leave it out
MARK = "input_hint_block.0.weight"  # theirs alone
UNION = ("task_embedding", "transformer_layes", "spatial_ch_projs", "control_add_embedding")
UNION_KINDS = "task_embedding"  # of a union, a row for each kind of pictures
CONTROL_LORA = "lora_controlnet"  # says that weights are the U-Net's, some changed by products of low rank (Stability)
DIFFERENCE = "difference"  # says that weights are to be added to the U-Net's (sd-webui-controlnet, ComfyUI)
CLASSES = ("ControlNetModel", "ControlNetUnionModel")
FIXED = {"controlnet_conditioning_channel_order": "rgb"}  # "bgr" was one early release
# What steers otherwise, by a part of a name that only it has.
OTHERS = {
    "motion_modules.": "a SparseCtrl of AnimateDiff",
    "brushnet_": "a BrushNet",
    "ctrl_to_base": "a ControlNet-XS",
    "down_zero_convs_out": "a ControlNet-XS",
    "ip_adapter.": "an IP-Adapter",
    "controlnet_blocks.": "a ControlNet of Stable Diffusion 3, Flux or the like",
}
UNETS_ALONE = (
    "out_channels",
    "sample_size",
    "up_block_types",
    "reverse_transformer_layers_per_block",
    "time_cond_proj_dim",
)
POOLED = ("_shuffle", "_shuffle_fp16")  # how the names of such files end, which say it nowhere (ComfyUI)


def load_controlnet(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    config: ControlNetConfig | None = None,
    base: UNet | None = None,
) -> ControlNet:
    """Read a ControlNet from a folder or a file at `path`, onto `device` in `dtype` (None: the file's own).

    What a single file is, is told from its names and shapes, unless `config` says. A file that holds a whole model
    beside it will do. `base` is the U-Net to which a file of differences, or a Control-LoRA, is added. Raises
    ReverieError where there is none, it is damaged, or it is of a kind that is not known.
    """
    path = Path(path)
    if path.is_dir():
        given = config or read_controlnet(read_json(path / "config.json"), str(path / "config.json"))
        module = blueprint(partial(ControlNet, given))
        load_weights(module, control_files(path, dtype), device=device, dtype=dtype)
        return module
    if not path.is_file():
        raise ReverieError(f"no ControlNet at '{path}'; give a folder in diffusers' layout or a file of weights")
    source = open_source(path)
    if CONTROL_LORA in source.names():
        return _derive(source, base, path).to(device, dtype)
    module, table = _recognise(source, path, [config] if config else list(CONTROLNETS.values()))
    state = {ours: place.read(source.tensor(place.name)) for ours, place in table.items()}
    if DIFFERENCE in source.names():
        state = _add_base(state, base, path)
    module.load_state_dict({ours: tensor.to(device, dtype) for ours, tensor in state.items()}, assign=True)
    return module.eval()


def control_files(path: str | Path, dtype: torch.dtype | None) -> list[Path]:
    """Return the files that a ControlNet's weights are read from."""
    path = Path(path)
    return find_weights(path, DIFFUSERS_STEM, dtype) if path.is_dir() else [path]


def read_controlnet(raw: dict[str, Any], where: str) -> ControlNetConfig:
    """Translate diffusers' ControlNetModel config. `where` names the file in errors."""
    if (name := raw.get("_class_name", CLASSES[0])) not in CLASSES:
        raise ReverieError(f"{where}: _class_name is {name!r}, which is not supported; give {' or '.join(CLASSES)}")
    for key, expected in FIXED.items():
        if (given := raw.get(key, expected)) != expected:
            raise ReverieError(f"{where}: {key} is {given!r}, which is not supported; it should be {expected!r}")
    down = raw.get("down_block_types") or []
    up = [UNET_BLOCKS.get(block) for block in reversed(down)]
    unet = read_unet({"sample_size": 64, **raw, "up_block_types": up}, where)
    widths = tuple(raw.get("conditioning_embedding_out_channels") or (16, 32, 96, 256))
    config = ControlNetConfig(
        unet, raw.get("conditioning_channels", 3), widths, bool(raw.get("global_pool_conditions"))
    )
    if name == CLASSES[0]:
        return config
    heads, layers = raw.get("num_trans_head", 8), raw.get("num_trans_layer", 1)
    return replace(config, kinds=raw.get("num_control_type", 6), fusing_heads=heads, fusing_layers=layers)


def write_controlnet(config: ControlNetConfig) -> dict[str, Any]:
    """Write the config of a ControlNet of one kind as diffusers' ControlNetModel reads it."""
    raw = {key: value for key, value in write_unet(config.unet).items() if key not in UNETS_ALONE}
    return raw | {
        "_class_name": CLASSES[0],
        "conditioning_channels": config.hint_channels,
        "conditioning_embedding_out_channels": list(config.hint_widths),
        "global_pool_conditions": config.pooled,
        **FIXED,
    }


def save_controlnet(network: ControlNet, folder: Path, name: str) -> None:
    """Write a ControlNet as diffusers' folder, and beside it as a file NAME.safetensors in lllyasviel's layout."""
    save_part(network, write_controlnet(network.control), folder)
    state = network.state_dict()
    write_tensors(compvis.to_single_file(state, places(network.control, list(state))), folder / f"{name}.safetensors")


def _add_base(state: dict[str, Tensor], base: UNet | None, path: Path) -> dict[str, Tensor]:
    """Add the U-Net's weights to those that a ControlNet shares with it. Raises ReverieError where they do not fit."""
    if base is None:
        raise ReverieError(f"'{path}' holds what is to be added to a U-Net; give the model that it steers")
    own = {name for name, _ in base.named_parameters()} | {f"{name}.weight" for name, _ in base.named_modules()}
    added = dict(state)
    for name in own & state.keys():
        weight = base.get_parameter(name).detach().cpu().float()
        if name == "conv_in.weight":
            weight = weight[:, : state[name].shape[1]]  # an inpainting U-Net's further channels
        if weight.shape != state[name].shape:
            raise ReverieError(f"'{path}' does not fit this model at {name}; give a ControlNet of the same family")
        added[name] = state[name].float() + weight
    return added


def _derive(source: Source, base: UNet | None, path: Path) -> ControlNet:
    """Make the network of a Control-LoRA: the U-Net's weights plus products of low rank, and what it has of its own.

    As in ComfyUI (comfy/controlnet.py, ControlLora). Raises ReverieError where it does not fit the U-Net.
    """
    if base is None:
        raise ReverieError(f"'{path}' holds changes of a U-Net; give the model that it steers")
    names = set(source.names()) - {CONTROL_LORA}
    config = _derived_config(source, names, base, path)
    module, known = blueprint(partial(ControlNet, config)), dict(base.named_modules())
    state = module.state_dict()
    for ours, place in places(config, list(state), "").items():
        layer, _, kind = place.name.rpartition(".")
        if place.name in names:
            weight = place.read(source.tensor(place.name)).float()
        elif ours.rpartition(".")[0] in known:
            weight = base.get_parameter(ours).detach().cpu().float()
            weight = weight[:, : config.unet.in_channels] if ours == "conv_in.weight" else weight
        else:
            raise ReverieError(f"'{path}' is damaged: it lacks '{place.name}'; fetch it again")
        parts = [f"{layer}.{part}" for part in ("up", "down")] if kind == "weight" else []
        factors = [source.tensor(part).float().flatten(1) for part in parts if part in names]
        product = factors[0] @ factors[1] if len(factors) == 2 else torch.zeros(weight.numel())
        if (weight.shape, product.numel()) != (state[ours].shape, weight.numel()):
            raise ReverieError(f"'{path}' does not fit this model at {ours}; give one of the same family")
        state[ours] = weight + product.view_as(weight)
        names -= {place.name, *parts}
    if names:
        raise ReverieError(f"'{path}' does not fit this model: it holds '{min(names)}', too; give one of its family")
    module.load_state_dict(state, assign=True)
    return module.eval()


def _derived_config(source: Source, names: set[str], base: UNet, path: Path) -> ControlNetConfig:
    """Describe the network of a Control-LoRA: the U-Net's, and how a hint is seen, by the shapes of the file."""
    hints = sorted(int(name.split(".")[1]) for name in names if re.fullmatch(r"input_hint_block\.\d+\.weight", name))
    if len(hints) < 2:
        raise ReverieError(f"'{path}' is no Control-LoRA that is known here: it does not say how it sees a hint")
    shapes = [source.shape(f"input_hint_block.{number}.weight") for number in hints]
    unet = replace(base.config, in_channels=base.config.out_channels)
    return ControlNetConfig(unet, shapes[0][1], tuple(shape[0] for shape in shapes[:-1:2]))


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
    if config.kinds:
        modules |= {part: Place(part) for part in UNION}
    return compvis.places(names, modules, prefix)


def _recognise(source: Source, path: Path, configs: list[ControlNetConfig]) -> tuple[ControlNet, Table]:
    """Find the config whose names and shapes are all in a file, and where.

    Raises ReverieError where there is none, or the file says by other names that it steers otherwise.
    """
    names = set(source.names())
    other = next((title for part, title in OTHERS.items() if any(part in name for name in names)), None)
    if other is not None:
        raise ReverieError(f"'{path}' is {other}, with which no control steers; give a plain ControlNet")
    pooled = path.stem.endswith(POOLED)
    kinds = source.shape(UNION_KINDS)[0] if UNION_KINDS in names else 0
    for config in [replace(config, pooled=pooled or config.pooled, kinds=kinds) for config in configs]:
        module = blueprint(partial(ControlNet, config))
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        table = {name: Place(name) for name in shapes}
        for prefix in (PREFIX, ""):
            if prefix + MARK in names:
                table = places(config, list(shapes), prefix)
        stored = [(shapes[ours], place) for ours, place in table.items()]
        if all(place.name in names and place.shape(source.shape(place.name)) == shape for shape, place in stored):
            _check_rest(names - {place.name for place in table.values()}, path)
            return module, table
    raise ReverieError(
        f"'{path}' is not a ControlNet that is known here, whole and undamaged; give one for {', '.join(CONTROLNETS)}, "
        "in diffusers' layout or lllyasviel's"
    )


def _check_rest(names: set[str], path: Path) -> None:
    """Refuse a ControlNet with further parts of its own: it is of a kind that answers otherwise."""
    own = (PREFIX, "control", "input_hint_block.", "zero_convs.", "transformer_layes.", "spatial_ch_projs.")
    mine = sorted(name for name in names if name.startswith(own))
    if mine:
        raise ReverieError(
            f"'{path}' is a ControlNet of a kind that is not known here: it holds '{mine[0]}' beside what is known"
        )
