"""Names in files of adapters: which layer of a model a key means, and which part of an adapter its tensor is.

One table of endings says the part, one of prefixes the network; all layouts come to one spelling. They are those of
kohya's sd-scripts (`lora_unet_down_blocks_0_...`, for SDXL also with the blocks of the original code,
`lora_unet_input_blocks_4_...`; `lora_te_`, `lora_te1_`, `lora_te2_`, `oft_unet_`), LyCORIS' wrapper and SimpleTuner
(`lycoris_`), diffusers and peft (`unet.down_blocks.0...`, `text_encoder_2...`, `base_model.model...`), the attention
processors of diffusers before 0.17 (`...attn1.processor.to_q_lora.down.weight`), ComfyUI and OneTrainer
(`diffusion_model...`, `text_encoders.clip_l.transformer...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from reverie.checkpoints.compvis import places, unet
from reverie.errors import ReverieError
from reverie.models.k_unet import KUNet
from reverie.models.unet import UNet

# What the last part of a key says the tensor is, under the names that `models.deltas` uses.
PARTS = {
    "down": (".lora_down.weight", ".lora_A.weight", ".lora_A", ".lora.down.weight", "_lora.down.weight"),
    "up": (".lora_up.weight", ".lora_B.weight", ".lora_B", ".lora.up.weight", "_lora.up.weight"),
    "mid": (".lora_mid.weight",),
    "up_bias": (".lora_B.bias",),
    "magnitude": (".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    "ia3": (".weight",),
    "a1": (".a1.weight",),
    "a2": (".a2.weight",),
    "b1": (".b1.weight",),
    "b2": (".b2.weight",),
    "bm": (".bm.weight",),
    "oft_R": (".oft_R.weight",),
    "scaled_oft": (".oft_R.scaled_oft",),
    **{
        part: (f".{part}",)
        for part in (
            *("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "on_input", "ia3_l"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("oft_blocks", "rescale", "boft_R", "boft_s"),
        )
    },
}
PARTS["down"] += (".lora_linear_layer.down.weight",)
PARTS["up"] += (".lora_linear_layer.up.weight",)
ENDINGS = {ending: part for part, endings in PARTS.items() for ending in endings}
_BY_LENGTH = sorted(ENDINGS, key=len, reverse=True)

# What trains an adapter, told by a part that no other has.
ALGORITHMS = {
    "down": "LoRA",
    "up": "LoRA",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "a1": "GLoRA",
    "oft_blocks": "OFT",
    "oft_R": "OFT",
    "boft_R": "BOFT",
    "diff": "full differences",
    "diff_b": "biases",
    "w_norm": "norms",
    "on_input": "(IA)3",
    "ia3_l": "(IA)3",
    "dora_scale": "DoRA",
    "magnitude": "DoRA",
}

NAMED = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.[^.]+\.(weight|bias)$")  # peft's name of an adapter within
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")  # of peft, torch.compile and DistributedDataParallel
# The first part of a key, dots as underscores, and the network: the U-Net, the first and the second text encoder.
PREFIXES = (
    *(("lora_unet_", "unet"), ("oft_unet_", "unet"), ("unet_", "unet")),
    *(("diffusion_model_", "unet"), ("model_diffusion_model_", "unet"), ("lycoris_text_model_", "te1")),
    *(("lora_te1_", "te1"), ("lora_te2_", "te2"), ("lora_te_", "te1")),
    *((f"text_encoders_{name}_transformer_", te) for name, te in (("clip_l", "te1"), ("clip_h", "te1"))),
    *(("text_encoders_clip_g_transformer_", "te2"), ("text_encoder_2_", "te2"), ("text_encoder_", "te1")),
    *(("text_model_", "te1"), ("encoder_layers_", "te1")),  # a text encoder's file of its own
    *(("lycoris_", "unet"), ("", "unet")),  # the first files of diffusers hold nothing but the U-Net's
)
OWN = ("text_model_", "encoder_layers_", "")  # prefixes that are part of the layer's path
BUNDLED = "bundle_emb."  # OneTrainer's and kohya's textual inversions within a LoRA


@dataclass(frozen=True, eq=False)
class Target:
    """Hold a layer of a model: its module, its network ("unet", "te1", "te2") and its path there."""

    module: nn.Module
    network: str
    path: str


def group(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Group a file's keys by the layer as they spell it, part by part; return the keys of no known part beside them.

    Textual inversions that are bundled with a LoRA are in neither.
    """
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        plain = NAMED.sub(r".\1.\2", key)
        ending = next((ending for ending in _BY_LENGTH if plain.endswith(ending)), None)
        if key.startswith(BUNDLED):
            continue
        if ending is None:
            unknown.append(key)
        else:
            layers.setdefault(plain[: -len(ending)], {})[ENDINGS[ending]] = key
    for name, parts in list(layers.items()):
        if "ia3" in parts and "on_input" not in parts:  # any weight ends so; LyCORIS' (IA)3 says where it acts
            unknown.append(parts.pop("ia3"))
            if not parts:
                del layers[name]
    return layers, unknown


def algorithms(keys: Iterable[str]) -> list[str]:
    """Name what trained an adapter with these keys; nothing where they are those of a network."""
    layers, _ = group(keys)
    found = {part for parts in layers.values() for part in parts}
    return list(dict.fromkeys(name for part, name in ALGORITHMS.items() if part in found))


def canonical(name: str) -> str:
    """Bring a layer's name to its network and its path there with underscores: "unet mid_block_resnets_0_conv1"."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    name = name.replace(".processor.", ".").replace(".", "_")
    prefix, network = next(pair for pair in PREFIXES if name.startswith(pair[0]))
    path = name if prefix in OWN else name.removeprefix(prefix)
    if network == "unet":
        return f"unet {path}_0" if path.endswith("_to_out") else f"unet {path}"
    path = re.sub(r"_self_attn_to_(q|k|v|out)$", r"_self_attn_\1_proj", path)  # diffusers 0.15 and 0.16
    return f"{network} {path.removeprefix('text_model_')}"


def targets(network: UNet, text_encoders: Sequence[nn.Module]) -> Mapping[str, Target]:
    """List the layers of a model under every name that `canonical` gives them.

    Raises ReverieError for a U-Net of which no adapters are made.
    """
    if isinstance(network, KUNet):
        raise ReverieError(
            "LoRAs are for the U-Nets of SD 1, 2 and XL, and this model doubles pictures; leave them out"
        )
    found: dict[str, Target] = {}
    layers = dict(_layers_with_weights(network))
    for name, place in places(layers, unet(network.config), "").items():
        target = Target(layers[name], "unet", name)
        found |= {f"unet {spelled.replace('.', '_')}": target for spelled in (name, place.name)}
    for number, tower in enumerate(text_encoders, start=1):
        for name, module in _layers_with_weights(tower):
            target = Target(module, f"te{number}", name)
            found[canonical(f"lora_te{number}_{name}")] = target
            if len(text_encoders) == 1 and network.config.takes_sizes:
                found[canonical(f"lora_te2_{name}")] = target  # the refiner has SDXL's second alone
    return found


def _layers_with_weights(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        # The first two always have one; asking a packed one for it would unpack it.
        if isinstance(module, nn.Linear | nn.Conv2d) or isinstance(getattr(module, "weight", None), nn.Parameter):
            yield name, module
