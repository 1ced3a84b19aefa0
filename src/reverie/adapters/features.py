"""Pictures that steer by features which are computed once for a drawing: T2I-Adapters and ControlNet-LLLites.

A T2I-Adapter's are added within the U-Net's way down; it is read from a folder in diffusers' layout, or from one file
in diffusers' or the authors' (TencentARC). A ControlNet-LLLite (kohya) changes by them what attentions are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from reverie.adapters.control import control_files
from reverie.adapters.ip_adapter import level_size
from reverie.checkpoints.adapter_keys import Target, targets
from reverie.checkpoints.compvis import Place
from reverie.checkpoints.families import FilePart
from reverie.checkpoints.load import CPU
from reverie.checkpoints.single import read_part
from reverie.checkpoints.weights import Source, blueprint, open_source
from reverie.diffusion.denoiser import Network
from reverie.errors import ReverieError
from reverie.media.pictures import to_rgb
from reverie.models.controlnet import FACTOR_XL, LLLite, T2IAdapter, T2IAdapterConfig
from reverie.models.unet import UNet
from reverie.system import Conditioning, StableDiffusion

Bind = Callable[[Conditioning], Network]
PREFIX = "adapter."  # of diffusers' files
MARK = re.compile(r"(?:adapter\.)?body\.0\.(?:body\.|resnets\.|block1\.)")
SHAPES = {
    channels * factor**2: (channels, factor) for channels in (1, 3) for factor in (8, FACTOR_XL)
}  # by the channels that the first convolution takes


@dataclass(frozen=True, eq=False)
class FeatureControl:
    """Steer by a picture that is already what a T2I-Adapter was trained on; see `Control`, whose fields these are."""

    network: T2IAdapter
    picture: Image.Image
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def features(self, height: int, width: int) -> list[Tensor]:
        """Return the features of the picture stretched to so many pixels, and to whole ones of the adapter's."""
        config, weight = self.network.config, next(self.network.parameters())
        rows, columns = (-(-side // config.factor) * config.factor for side in (height, width))
        picture = to_rgb(self.picture).resize((columns, rows), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture if config.in_channels == 3 else picture.convert("L"), dtype=np.float32) / 255
        seen = torch.from_numpy(pixels).view(rows, columns, config.in_channels).permute(2, 0, 1)[None]
        return [self.weight * feature for feature in self.network(seen.to(weight))]


def bind_features(system: StableDiffusion, controls: Sequence[FeatureControl], bind: Bind) -> Bind:
    """Return what binds a conditioning as `bind` does, to a U-Net to whose features those of the controls are added.

    Raises ReverieError where a T2I-Adapter is of another family than the model.
    """
    if not controls:
        return bind
    places = feature_places(system.unet)
    for control in controls:
        _check(system, control.network.config)
    features, factor = cache(FeatureControl.features), system.codec.factor

    def bind_steered(conditioning: Conditioning) -> Network:
        network = bind(conditioning)

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            way = system.progress(t[0].item())
            active = [control for control in controls if control.weight and control.start <= way <= control.end]
            added = [features(control, factor * x.shape[2], factor * x.shape[3]) for control in active]
            with adding(places, [torch.stack(level).sum(0) for level in zip(*added, strict=True)]):
                return network(x, t)

        return predict

    return bind_steered


@contextmanager
def adding(places: Sequence[nn.Module], features: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, add features to what modules give, each to one; without features nothing is touched."""

    def hook(added: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
        return lambda module, given, output: output + added

    hooks = [place.register_forward_hook(hook(added)) for place, added in zip(places, features, strict=False)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def feature_places(unet: UNet) -> list[nn.Module]:
    """Return the modules of a U-Net to whose outputs features are added, as diffusers' does it.

    In a level with attention it is the last before the image is halved, in others it is the last of all; then the
    middle, which SDXL's fourth features are for.
    """
    places: list[nn.Module] = []
    for block in unet.down_blocks:
        found = [*block.get_submodule("resnets").children(), *block.get_submodule("downsamplers").children()]
        attentions = list(block.get_submodule("attentions").children())
        places.append(attentions[-1] if attentions else found[-1])
    return places if unet.mid_block is None else [*places, unet.mid_block]


def _check(system: StableDiffusion, config: T2IAdapterConfig) -> None:
    ours = system.unet.config.block_out_channels
    xl = not system.unet.config.transformer_depth[0]  # whose first features are added where the image is halved already
    wanted = ((*ours, ours[-1]), FACTOR_XL) if xl else (ours, T2IAdapterConfig.factor)
    if (config.widths, config.factor) != wanted:
        raise ReverieError(
            f"this T2I-Adapter gives {config.widths} channels from {config.factor} pixels each; the model takes "
            f"{wanted[0]} from {wanted[1]}: give one of the same family"
        )


def find_t2i_adapter(
    path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32
) -> T2IAdapter | None:
    """Read a T2I-Adapter from a folder or a file at `path`, onto `device` in `dtype` (None: the file's own).

    What it is, is told from its names and shapes; None where there is something else. Raises ReverieError where it is
    damaged.
    """
    files = control_files(path, dtype)
    if len(files) > 1 or not files[0].is_file():
        return None
    source = open_source(files[0])
    names = list(source.names())
    if not any(MARK.match(name) for name in names):
        return None
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    try:
        config = _config(source, prefix)
    except (KeyError, IndexError, ValueError) as error:
        raise ReverieError(f"'{path}' is no T2I-Adapter that is known here, whole and undamaged") from error
    table = {"conv_in": Place("conv_in")} if not config.light else {}
    table |= {f"body.{level}": Place(f"body.{level}") for level in range(len(config.widths))}
    if not any(".resnets." in name for name in names):
        table |= _original(config)
    closed = (prefix or "body.",)
    return read_part(FilePart(lambda: T2IAdapter(config), table, prefix, closed), source, str(path), device, dtype)


def _config(source: Source, prefix: str) -> T2IAdapterConfig:
    """Tell a config from shapes; KeyError, IndexError or ValueError where there is none."""
    names = [name.removeprefix(prefix) for name in source.names()]

    def outputs(name: str) -> int:
        return source.shape(prefix + name)[0]

    levels = sorted({int(name.split(".")[1]) for name in names if name.startswith("body.")})
    if "body.0.out_conv.weight" in names:
        channels, factor = SHAPES[source.shape(f"{prefix}body.0.in_conv.weight")[1]]
        layers = len({name.split(".")[3] for name in names if re.match(r"body\.0\.(?:body|resnets)\.", name)})
        widths = tuple(outputs(f"body.{level}.out_conv.weight") for level in levels)
        return T2IAdapterConfig(channels, factor, widths, layers, light=True)
    channels, factor = SHAPES[source.shape(f"{prefix}conv_in.weight")[1]]
    layers = len({name.split(".")[3] for name in names if name.startswith("body.0.resnets.")})
    if layers:
        return T2IAdapterConfig(
            channels, factor, tuple(outputs(f"body.{level}.resnets.0.block1.weight") for level in levels), layers
        )
    layers = ORIGINAL_LAYERS
    firsts = levels[::layers]
    return T2IAdapterConfig(channels, factor, tuple(outputs(f"body.{first}.block1.weight") for first in firsts), layers)


ORIGINAL_LAYERS = 2  # of a level in the authors' files, which count them through


def _original(config: T2IAdapterConfig) -> dict[str, Place]:
    """Place modules in the authors' files: light levels have a body each, others' blocks are counted through."""
    if config.light:
        return {f"body.{level}.resnets": Place(f"body.{level}.body") for level in range(len(config.widths))}
    table = {}
    for level in range(len(config.widths)):
        first = level * config.layers
        table[f"body.{level}.in_conv"] = Place(f"body.{first}.in_conv")
        table |= {f"body.{level}.resnets.{n}": Place(f"body.{first + n}") for n in range(config.layers)}
    return table


@dataclass(frozen=True, eq=False)
class LayerControl:
    """Steer by a picture that is already what a ControlNet-LLLite was trained on; see `Control`.

    `layers` are its parts, by the names that its file gives to layers of the U-Net.
    """

    layers: dict[str, LLLite]
    picture: Image.Image
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def embeddings(self, height: int, width: int) -> dict[str, Float[Tensor, "1 e _h _w"]]:
        """Return the picture as each layer sees it, stretched to so many pixels and continued to whole cells."""
        pixels = np.asarray(to_rgb(self.picture).resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
        seen = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
        seen = F.pad(seen, (0, -width % COARSEST, 0, -height % COARSEST), mode="replicate")
        return {name: layer.conditioning1(seen.to(next(layer.parameters()))) for name, layer in self.layers.items()}


def bind_layer_controls(system: StableDiffusion, controls: Sequence[LayerControl], bind: Bind) -> Bind:
    """Return what binds a conditioning as `bind` does, to a U-Net some of whose layers are given what controls change.

    Raises ReverieError where a ControlNet-LLLite is of another family than the model.
    """
    if not controls:
        return bind
    places = targets(system.unet, ())
    modules = [[_place(places, *layer) for layer in control.layers.items()] for control in controls]
    embeddings, factor = cache(LayerControl.embeddings), system.codec.factor

    def bind_changed(conditioning: Conditioning) -> Network:
        network = bind(conditioning)

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            way, size, hooks = system.progress(t[0].item()), (x.shape[2], x.shape[3]), []
            try:
                for control, changed in zip(controls, modules, strict=True):
                    if not (control.weight and control.start <= way <= control.end):
                        continue
                    seen = embeddings(control, factor * size[0], factor * size[1])
                    for (name, layer), module in zip(control.layers.items(), changed, strict=True):
                        change = partial(_change, layer, seen[name], control.weight, size)
                        hooks.append(module.register_forward_pre_hook(change))
                return network(x, t)
            finally:
                for hook in hooks:
                    hook.remove()

        return predict

    return bind_changed


def _change(
    layer: LLLite,
    seen: Float[Tensor, "1 e _h _w"],
    weight: float,
    size: tuple[int, int],
    module: nn.Module,
    given: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Add to what a layer is given, in a U-Net whose latents have a size."""
    x, *rest = given
    height, width = level_size(size, x.shape[1])
    return (x + weight * layer(x, seen[:, :, :height, :width].flatten(2).mT), *rest)


def _place(places: Mapping[str, Target], name: str, layer: LLLite) -> nn.Module:
    target = places.get(f"unet {name.removeprefix(LLLITE)}")
    if target is None or getattr(target.module, "in_features", None) != layer.dim:
        raise ReverieError(
            f"this ControlNet-LLLite changes '{name}', which the model does not have, or in another width; give one of "
            "the same family"
        )
    return target.module


LLLITE = "lllite_unet_"
COARSEST = 32  # pixels of a side that are one of the smallest embedding's


def find_lllite(
    path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32
) -> dict[str, LLLite] | None:
    """Read a ControlNet-LLLite's parts from a file at `path`, onto `device` in `dtype` (None: the file's own).

    None where there is something else. Raises ReverieError where it is damaged.
    """
    if not (path := Path(path)).is_file():
        return None
    source = open_source(path)
    parts: dict[str, dict[str, str]] = {}
    for key in source.names():
        name, _, inner = key.partition(".")
        if name.startswith(LLLITE):
            parts.setdefault(name, {})[inner] = key
    try:
        return {name: _read_layer(source, keys).to(device, dtype) for name, keys in parts.items()} or None
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise ReverieError(f"'{path}' is no ControlNet-LLLite that is known here, whole and undamaged") from error


def _read_layer(source: Source, keys: Mapping[str, str]) -> LLLite:
    """Read one part. Raises KeyError, IndexError, ValueError or RuntimeError where it is not whole."""
    state = {inner: source.tensor(key) for inner, key in keys.items()}
    hidden, dim = state["down.0.weight"].shape
    depth = 3 if "conditioning1.4.weight" in state else 2 if state["conditioning1.2.weight"].shape[-1] == 4 else 1
    layer = blueprint(partial(LLLite, dim, hidden, 2 * len(state["conditioning1.0.weight"]), depth))
    layer.load_state_dict(state, assign=True)
    return layer.eval()
