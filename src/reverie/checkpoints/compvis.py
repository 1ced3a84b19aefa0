"""CompVis' and OpenCLIP's names of each tensor of a single file, as pure tables.

Source: the modules of CompVis/stable-diffusion (`openaimodel.py`, `model.py`, `ema.py`), Stability's generative-models
and open_clip (`transformer.py`), whose state dicts the official single files are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from reverie.checkpoints.weights import same
from reverie.models.autoencoder import AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, CLIPVisionConfig
from reverie.models.unet import UNetConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """Say how a stored tensor lies: how its shape becomes ours, how it is read (as a view) and how it is written."""

    shape: Callable[[Shape], Shape]
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]


def _same(shape: Shape) -> Shape:
    return shape


def _flat(shape: Shape) -> Shape:
    """Drop the sides of a kernel of one pixel; a matrix stays, as newer programs write it."""
    return shape[:2] if shape[2:] == (1, 1) else shape


SAME = Form(_same, lambda x: x, lambda x: x)
TRANSPOSED = Form(lambda shape: shape[::-1], torch.t, torch.t)
POINTWISE = Form(_flat, lambda x: x.view(_flat(tuple(x.shape))), lambda x: x[:, :, None, None])


@dataclass(frozen=True)
class Place:
    """Say where a single file holds a tensor: under which name, in which third of the rows (None: all), in what form.

    A place may also stand for a whole module: then `name` is the module's.
    """

    name: str
    third: int | None = None
    form: Form = SAME

    def shape(self, stored: Shape) -> Shape:
        """Return our tensor's shape, from the stored one's."""
        shape = self.form.shape(stored)
        return shape if self.third is None or not shape or shape[0] % 3 else (shape[0] // 3, *shape[1:])

    def read(self, stored: Tensor) -> Tensor:
        """Return our tensor: a view of the stored one."""
        tensor = self.form.read(stored)
        return tensor if self.third is None else tensor.chunk(3)[self.third]


Table = dict[str, Place]


def places(names: Iterable[str], modules: Mapping[str, Place], prefix: str) -> Table:
    """Give each of our tensors its place: that of the longest module (or tensor) in `modules` that its name is in.

    Raises KeyError where it is in none.
    """
    table = {}
    for name in names:
        module = name
        while module and module not in modules:
            module = module.rpartition(".")[0]
        place = modules[module]
        table[name] = replace(place, name=f"{prefix}{place.name}{name.removeprefix(module)}")
    return table


def to_single_file(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Lay our tensors out as a single file holds them: the inverse of reading each from its place."""
    together: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, place in table.items():
        together.setdefault(place.name, []).append((place, place.form.write(state[name])))
    return {
        name: parts[0][1]
        if parts[0][0].third is None
        else torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0].third or 0)])
        for name, parts in together.items()
    }


def ema_name(name: str) -> str:
    """Name the running average of a U-Net's weight: CompVis' `LitEma` takes the dots out."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def unet(config: UNetConfig) -> Table:
    """Place the modules of a U-Net, below `model.diffusion_model.`."""
    table = {
        "conv_in": Place("input_blocks.0.0"),
        **_plain({"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}),
        **_plain(
            {
                f"{added}_embedding.linear_{number}": f"label_emb.0.{2 * number - 2}"
                for added in ("add", "class")
                for number in (1, 2)
            }
        ),
        **_plain({"time_embedding.cond_proj": "time_embedding.cond_proj"}),  # of latent consistency models
        **_plain({"class_embedding": "label_emb"}),  # a row for each noise level, of the x4 upscaler
        **_plain({"conv_norm_out": "out.0", "conv_out": "out.2"}),
        **unet_down(config),
    }
    block, last = 0, len(config.block_out_channels) - 1
    for up in range(last + 1):
        for layer, depth in enumerate(config.up_depths(last - up)):
            theirs = f"output_blocks.{block}"
            table |= _layer(f"up_blocks.{up}", layer, theirs, depth)
            block += 1
        if up != last:  # the last block of a level also enlarges
            table[f"up_blocks.{up}.upsamplers.0"] = Place(f"{theirs}.{2 if depth else 1}")
    return table


def unet_down(config: UNetConfig) -> Table:
    """Place the modules of a U-Net's way down and middle, which a ControlNet has too."""
    table: Table = {}
    block, last = 1, len(config.block_out_channels) - 1
    for down, depth in enumerate(config.transformer_depth):
        for layer in range(config.layers_per_block):
            table |= _layer(f"down_blocks.{down}", layer, f"input_blocks.{block}", depth)
            block += 1
        if down != last:
            table[f"down_blocks.{down}.downsamplers.0.conv"] = Place(f"input_blocks.{block}.0.op")
            block += 1
    if config.mid_transformer_depth is not None:
        table |= _layer("mid_block", 0, "middle_block", config.mid_transformer_depth)
    return table | _residual("mid_block.resnets.1", "middle_block.2")


def _layer(ours: str, index: int, theirs: str, depth: int) -> Table:
    table = _residual(f"{ours}.resnets.{index}", f"{theirs}.0")
    if depth:  # inside a spatial transformer both have the same names
        table[f"{ours}.attentions.{index}"] = Place(f"{theirs}.1")
    return table


RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _residual(ours: str, theirs: str) -> Table:
    return {f"{ours}.{part}": Place(f"{theirs}.{name}") for part, name in RESIDUAL.items()}


def _plain(names: Mapping[str, str]) -> Table:
    return {ours: Place(theirs) for ours, theirs in names.items()}


def autoencoder(config: AutoencoderConfig) -> Table:
    """Place the modules of an autoencoder, below `first_stage_model.`, or bare in a file of its own."""
    levels, table = config.block_out_channels, _plain({part: part for part in ("quant_conv", "post_quant_conv")})
    for side, blocks, resample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        table |= _plain({f"{side}.{part}": f"{side}.{part}" for part in ("conv_in", "conv_out")})
        table[f"{side}.conv_norm_out"] = Place(f"{side}.norm_out")
        table |= _middle(f"{side}.mid_block", f"{side}.mid")
        for level in range(len(levels)):
            # CompVis counts the decoder's levels from the picture, the way opposite to its data's.
            theirs = f"{side}.{blocks}.{level if side == 'encoder' else len(levels) - 1 - level}"
            ours = f"{side}.{blocks}_blocks.{level}"
            for layer in range(config.layers_per_block + (side == "decoder")):
                table |= _image_residual(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}")
            table[f"{ours}.{resample}rs.0"] = Place(f"{theirs}.{resample}")
    return table


def _middle(ours: str, theirs: str) -> Table:
    attention = f"{ours}.attentions.0"
    table = {f"{attention}.group_norm": Place(f"{theirs}.attn_1.norm")}
    for part, name in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        table[f"{attention}.{part}"] = Place(f"{theirs}.attn_1.{name}")
        table[f"{attention}.{part}.weight"] = Place(f"{theirs}.attn_1.{name}.weight", form=POINTWISE)
    for index in range(2):
        table |= _image_residual(f"{ours}.resnets.{index}", f"{theirs}.block_{index + 1}")
    return table


def _image_residual(ours: str, theirs: str) -> Table:
    return {ours: Place(theirs), f"{ours}.conv_shortcut": Place(f"{theirs}.nin_shortcut")}


def open_clip(config: CLIPTextConfig) -> Table:
    """Place the modules of OpenCLIP's text tower, whose query, key and value are fused."""
    table = _plain(
        {
            "text_model.embeddings.token_embedding": "token_embedding",
            "text_model.embeddings.position_embedding.weight": "positional_embedding",
            "text_model.final_layer_norm": "ln_final",
        }
    )
    table["text_projection.weight"] = Place("text_projection", form=TRANSPOSED)
    return table | _open_clip_layers("text_model.encoder.layers", "transformer.resblocks", config.num_hidden_layers)


def open_clip_vision(config: CLIPVisionConfig) -> Table:
    """Place the modules of OpenAI's and OpenCLIP's vision transformer."""
    table = _plain(
        {
            "vision_model.embeddings.class_embedding": "visual.class_embedding",
            "vision_model.embeddings.patch_embedding": "visual.conv1",
            "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
            "vision_model.pre_layrnorm": "visual.ln_pre",
            "vision_model.post_layernorm": "visual.ln_post",
        }
    )
    table["visual_projection.weight"] = Place("visual.proj", form=TRANSPOSED)
    theirs = "visual.transformer.resblocks"
    return table | _open_clip_layers("vision_model.encoder.layers", theirs, config.num_hidden_layers)


def _open_clip_layers(all_ours: str, all_theirs: str, count: int) -> Table:
    table: Table = {}
    for layer in range(count):
        ours, theirs = f"{all_ours}.{layer}", f"{all_theirs}.{layer}"
        table |= _plain({f"{ours}.layer_norm1": f"{theirs}.ln_1", f"{ours}.layer_norm2": f"{theirs}.ln_2"})
        table |= _plain({f"{ours}.mlp.fc1": f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc2": f"{theirs}.mlp.c_proj"})
        table[f"{ours}.self_attn.out_proj"] = Place(f"{theirs}.attn.out_proj")
        table |= _thirds(f"{ours}.self_attn", f"{theirs}.attn.in_proj_")
    return table


def same_names(config: object) -> Table:
    """Place what is named as diffusers and transformers do, and so as we do."""
    return SAME_NAMES


def converted_names(config: CLIPTextConfig) -> Table:
    """Place the modules of OpenCLIP's text tower as stable-diffusion.cpp's `--convert-name` calls them.

    They are named as transformers' but for query, key and value, which stay fused, and the projection, which lies as
    OpenCLIP's does. Source: stable-diffusion.cpp 97d2990, src/name_conversion.cpp.
    """
    table = SAME_NAMES | {"text_projection.weight": Place("text_model.text_projection", form=TRANSPOSED)}
    for layer in range(config.num_hidden_layers):
        attention = f"text_model.encoder.layers.{layer}.self_attn"
        table |= _thirds(attention, f"{attention}.in_proj.")
    return table


def _thirds(ours: str, theirs: str) -> Table:
    """Place query, key and value, which are the thirds of one tensor."""
    return {
        f"{ours}.{part}.{leaf}": Place(theirs + leaf, third)
        for third, part in enumerate(("q_proj", "k_proj", "v_proj"))
        for leaf in ("weight", "bias")
    }


SAME_NAMES: Table = {"": Place("")}
UNET_PREFIX = "model.diffusion_model."


class Layout(NamedTuple):
    """Say how a file names the tensors of a U-Net: it holds `first`, and all of them begin with `prefix`."""

    first: str
    prefix: str
    modules: Callable[[UNetConfig], Table] = unet
    rename: Callable[[str], str] = same


FIRST = "input_blocks.0.0.weight"
OFFICIAL = Layout(UNET_PREFIX + FIRST, UNET_PREFIX)
AVERAGES = Layout(ema_name(UNET_PREFIX + FIRST), UNET_PREFIX, rename=ema_name)
UNET_LAYOUTS = (
    OFFICIAL,
    *(Layout(prefix + FIRST, prefix) for prefix in ("diffusion_model.", "")),
    *(Layout(f"{prefix}conv_in.weight", prefix, lambda _: SAME_NAMES) for prefix in ("unet.", "")),
    AVERAGES,
)


def unet_layout(names: Collection[str]) -> Layout | None:
    """Find the layout of the U-Net that a file holds; running averages count where there is no other."""
    return next((layout for layout in UNET_LAYOUTS if layout.first in names), None)


# diffusers before 0.17 named the autoencoder's attention after CompVis; files of that time are still about.
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def autoencoder_name(name: str) -> str:
    """Give today's name of an autoencoder's weight."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def text_tower_name(name: str) -> str:
    """Give the name of a text tower's weight under `text_model.`, which some writers leave out."""
    bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"text_model.{name}" if bare else name
